// Products of tiles that lie in the cache, where a BLAS spends a part of its time on packing. Blocks of six rows and
// two vectors of columns stay in registers; the summed axis runs in order, so results depend on shapes alone.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace egmla::cpu {

template <class T>
struct Vector {
  static constexpr int64_t kSize = 32 / sizeof(T);
  typedef T Type __attribute__((vector_size(32)));
  static Type load(const T* source) {
    Type out;
    std::memcpy(&out, source, sizeof(out));
    return out;
  }
  static void store(T* target, const Type& value) { std::memcpy(target, &value, sizeof(value)); }
};

// Element (r, k) of a tile stands at data[r * row + k * step]; transposed by swapping the two.
template <class T>
struct TileSide {
  const T* data;
  int64_t row, step;
};

template <class T, int kRows, int kVectors>
inline void multiply_block(int64_t depth, T alpha, TileSide<T> a, const T* b, int64_t b_row, T* c, int64_t c_row,
                           bool add) {
  using V = Vector<T>;
  typename V::Type sums[kRows][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    typename V::Type columns[kVectors];
    for (int v = 0; v < kVectors; ++v) columns[v] = V::load(b + k * b_row + v * V::kSize);
    for (int r = 0; r < kRows; ++r) {
      const T x = a.data[r * a.row + k * a.step];
      for (int v = 0; v < kVectors; ++v) sums[r][v] += x * columns[v];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      T* const target = c + r * c_row + v * V::kSize;
      const typename V::Type scaled = alpha * sums[r][v];
      V::store(target, add ? V::load(target) + scaled : scaled);
    }
  }
}

// All columns of kRows rows.
template <class T, int kRows>
void multiply_rows(int64_t columns, int64_t depth, T alpha, TileSide<T> a, const T* b, int64_t b_row, T* c,
                   int64_t c_row, bool add) {
  constexpr int64_t kSize = Vector<T>::kSize;
  int64_t n = 0;
  for (; n + 2 * kSize <= columns; n += 2 * kSize)
    multiply_block<T, kRows, 2>(depth, alpha, a, b + n, b_row, c + n, c_row, add);
  for (; n + kSize <= columns; n += kSize)
    multiply_block<T, kRows, 1>(depth, alpha, a, b + n, b_row, c + n, c_row, add);
  for (; n < columns; ++n) {
    for (int r = 0; r < kRows; ++r) {
      T sum = 0;
      for (int64_t k = 0; k < depth; ++k) sum += a.data[r * a.row + k * a.step] * b[k * b_row + n];
      T& target = c[r * c_row + n];
      target = (add ? target : T(0)) + alpha * sum;
    }
  }
}

constexpr int64_t kTileRows = 6;

// c [rows, columns] = alpha a b, or += with `add`; b [depth, columns] with rows b_row apart. rows <= kTileRows.
template <class T>
void multiply_tile(int64_t rows, int64_t columns, int64_t depth, T alpha, TileSide<T> a, const T* b, int64_t b_row,
                   T* c, int64_t c_row, bool add) {
  if (rows == kTileRows) return multiply_rows<T, kTileRows>(columns, depth, alpha, a, b, b_row, c, c_row, add);
  const auto some_rows = [&]<int kRows>(std::integral_constant<int, kRows>) {
    if (rows < kRows) return;
    multiply_rows<T, kRows>(columns, depth, alpha, a, b, b_row, c, c_row, add);
    a.data += kRows * a.row;
    c += kRows * c_row;
    rows -= kRows;
  };
  some_rows(std::integral_constant<int, 4>{});
  some_rows(std::integral_constant<int, 2>{});
  some_rows(std::integral_constant<int, 1>{});
}

}  // namespace egmla::cpu
