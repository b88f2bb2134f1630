// Element types carried at run time by views.
#pragma once

#include <cstddef>
#include <cstdint>

namespace egmla {

enum class DType : uint8_t { f32, f64, bf16, i32 };

constexpr size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return 8;
    case DType::bf16:
      return 2;
    default:
      return 4;
  }
}

constexpr const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "f32";
    case DType::f64:
      return "f64";
    case DType::bf16:
      return "bf16";
    default:
      return "i32";
  }
}

// C++ type -> DType; bf16 has its host representation in bf16.h and its device one in kernels/cuda_utils.cuh.
template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::i32;
};

}  // namespace egmla
