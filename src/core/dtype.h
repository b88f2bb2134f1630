// Element types carried at run time by views.
#pragma once

#include <cstddef>
#include <cstdint>

namespace egmla {

// e4m3 is what matrix products read (core/fp8.h); nothing else computes in it.
enum class DType : uint8_t { f32, f64, bf16, i32, e4m3 };

constexpr size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return 8;
    case DType::bf16:
      return 2;
    case DType::e4m3:
      return 1;
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
    case DType::e4m3:
      return "e4m3";
    default:
      return "i32";
  }
}

// C++ type -> DType; e4m3 is seen as its bytes; bf16 has its host representation in bf16.h and its device one in
// kernels/cuda_utils.cuh.
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
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType value = DType::e4m3;
};

}  // namespace egmla
