#include "core/bf16.h"
#include "kernels/cpu_utils.h"
#include "kernels/elementwise.h"

namespace egmla {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements under which threads cost more than they bring

// Calls row(pointer offsets) for each row of a view of any rank.
template <class T, class F>
void for_rows(const View& view, F&& row) {
  const int64_t width = view.rank() ? view.shape.back() : 1;
  const int64_t count = width ? view.elements() / width : 0;
  T* base = view.as<T>();
  for (int64_t n = 0; n < count; ++n) {
    int64_t rest = n, offset = 0;
    for (int axis = view.rank() - 2; axis >= 0; --axis) {
      offset += rest % view.size(axis) * view.stride(axis);
      rest /= view.size(axis);
    }
    row(base + offset, width);
  }
}

template <class T>
void fill(const View& out, T value) {
  for_rows<T>(out, [&](T* row, int64_t width) { std::fill(row, row + width, value); });
}

// Calls function with a zero of the type that holds a value: float, double, or a bf16's bits.
template <class F>
void for_stored(DType dtype, const char* kernel, F&& function) {
  if (dtype == DType::bf16) return function(uint16_t{});
  cpu::for_float(dtype, kernel, function);
}

template <class To, class From>
To converted(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else if constexpr (std::is_same_v<From, uint16_t>) {
    return static_cast<To>(float_from_bf16(value));
  } else if constexpr (std::is_same_v<To, uint16_t>) {
    return bf16_from_float(static_cast<float>(value));
  } else {
    return static_cast<To>(value);
  }
}

// Rows in parallel: function(row index).
template <class F>
void parallel_rows(int64_t rows, int64_t width, F&& function) {
  cpu::parallel_ranges(rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(width, 1)),
                       [&](int64_t begin, int64_t end) {
                         for (int64_t n = begin; n < end; ++n) function(n);
                       });
}

constexpr double kGeluScale = 0.7978845608028654;  // sqrt(2 / pi)
constexpr double kGeluCubic = 0.044715;

}  // namespace

void run(CpuContext&, const Fill& k) {
  if (k.out.dtype == DType::i32) return fill<int32_t>(k.out, static_cast<int32_t>(k.value));
  cpu::for_float(k.out.dtype, Fill::kName,
                 [&](auto t) { fill<decltype(t)>(k.out, static_cast<decltype(t)>(k.value)); });
}

void run(CpuContext&, const Add& k) {
  cpu::for_float(k.out.dtype, Add::kName, [&](auto t) {
    using T = decltype(t);
    const View out = k.out.as_matrix(), a = k.a.as_matrix(), b = k.b.as_matrix();
    const int64_t width = out.size(1);
    parallel_rows(out.size(0), width, [&](int64_t n) {
      T* o = out.as<T>() + n * out.stride(0);
      const T* x = a.as<T>() + n * a.stride(0);
      const T* y = b.as<T>() + n * b.stride(0);
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) o[i] = x[i] + y[i];
    });
  });
}

void run(CpuContext&, const Convert& k) {
  for_stored(k.out.dtype, Convert::kName, [&](auto t) {
    for_stored(k.x.dtype, Convert::kName, [&](auto s) {
      const auto* x = k.x.as<decltype(s)>();
      auto* out = k.out.as<decltype(t)>();
      for (int64_t i = 0; i < k.x.elements(); ++i) out[i] = converted<decltype(t)>(x[i]);
    });
  });
}

void run(CpuContext&, const SwigluForward& k) {
  cpu::for_float(k.out.dtype, SwigluForward::kName, [&](auto t) {
    using T = decltype(t);
    const View out = k.out.as_matrix(), in = k.gate_up.as_matrix();
    const int64_t F = out.size(1);
    parallel_rows(out.size(0), F, [&](int64_t n) {
      T* o = out.as<T>() + n * out.stride(0);
      const T* gate = in.as<T>() + n * in.stride(0);
      const T* up = gate + F;
#pragma omp simd
      for (int64_t i = 0; i < F; ++i) o[i] = gate[i] * cpu::sigmoid(gate[i]) * up[i];
    });
  });
}

void run(CpuContext&, const SwigluBackward& k) {
  cpu::for_float(k.out_grad.dtype, SwigluBackward::kName, [&](auto t) {
    using T = decltype(t);
    const View grad = k.gate_up_grad.as_matrix(), dout = k.out_grad.as_matrix(), in = k.gate_up.as_matrix();
    const View out = k.out.defined() ? k.out.as_matrix() : View{};
    const int64_t F = dout.size(1);
    parallel_rows(dout.size(0), F, [&](int64_t n) {
      T* d = grad.as<T>() + n * grad.stride(0);
      T* o = out.defined() ? out.as<T>() + n * out.stride(0) : nullptr;
      const T* dy = dout.as<T>() + n * dout.stride(0);
      const T* gate = in.as<T>() + n * in.stride(0);
#pragma omp simd
      for (int64_t i = 0; i < F; ++i) {
        const T g = gate[i], u = gate[F + i], s = cpu::sigmoid(g), dout_i = dy[i];
        d[i] = dout_i * u * s * (T(1) + g * (T(1) - s));
        d[F + i] = dout_i * g * s;
        if (o) o[i] = g * s * u;
      }
    });
  });
}

void run(CpuContext&, const GeluForward& k) {
  cpu::for_float(k.out.dtype, GeluForward::kName, [&](auto t) {
    using T = decltype(t);
    const View out = k.out.as_matrix(), in = k.x.as_matrix();
    const int64_t F = out.size(1);
    parallel_rows(out.size(0), F, [&](int64_t n) {
      T* o = out.as<T>() + n * out.stride(0);
      const T* x = in.as<T>() + n * in.stride(0);
#pragma omp simd
      for (int64_t i = 0; i < F; ++i) {
        const T z = T(kGeluScale) * (x[i] + T(kGeluCubic) * x[i] * x[i] * x[i]);
        o[i] = T(0.5) * x[i] * (T(1) + cpu::tanh_of(z));
      }
    });
  });
}

void run(CpuContext&, const GeluBackward& k) {
  cpu::for_float(k.x.dtype, GeluBackward::kName, [&](auto t) {
    using T = decltype(t);
    const View grad = k.x_grad.as_matrix(), dout = k.out_grad.as_matrix(), in = k.x.as_matrix();
    const int64_t F = in.size(1);
    parallel_rows(in.size(0), F, [&](int64_t n) {
      T* d = grad.as<T>() + n * grad.stride(0);
      const T* dy = dout.as<T>() + n * dout.stride(0);
      const T* xs = in.as<T>() + n * in.stride(0);
#pragma omp simd
      for (int64_t i = 0; i < F; ++i) {
        const T x = xs[i], h = cpu::tanh_of(T(kGeluScale) * (x + T(kGeluCubic) * x * x * x));
        const T slope = T(kGeluScale) * (T(1) + T(3 * kGeluCubic) * x * x);
        d[i] = dy[i] * T(0.5) * (T(1) + h + x * (T(1) - h * h) * slope);
      }
    });
  });
}

}  // namespace egmla
