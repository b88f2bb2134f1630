// cuDNN's graph API in few words: the library, found when first needed; one descriptor; a graph of operations on
// [batch, heads, rows, columns] tensors; and the plan that runs it. Whatever the library refuses is an Error.
#pragma once

#include <cudnn.h>

#include <array>
#include <initializer_list>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"

namespace egmla::cudnn {

// What is used of libcudnn. It is opened at run time, so that the program also starts where it is missing.
struct Library {
  decltype(&cudnnCreate) create = nullptr;
  decltype(&cudnnDestroy) destroy = nullptr;
  decltype(&cudnnSetStream) set_stream = nullptr;
  decltype(&cudnnGetVersion) version = nullptr;
  decltype(&cudnnGetErrorString) error_string = nullptr;
  decltype(&cudnnBackendCreateDescriptor) create_descriptor = nullptr;
  decltype(&cudnnBackendDestroyDescriptor) destroy_descriptor = nullptr;
  decltype(&cudnnBackendSetAttribute) set_attribute = nullptr;
  decltype(&cudnnBackendGetAttribute) get_attribute = nullptr;
  decltype(&cudnnBackendFinalize) finalize = nullptr;
  decltype(&cudnnBackendExecute) execute = nullptr;
};
const Library& library();  // raises where it is not found

void check_cudnn(cudnnStatus_t status, const char* what);

// Owns one backend descriptor.
class Descriptor {
 public:
  explicit Descriptor(cudnnBackendDescriptorType_t type);
  Descriptor(Descriptor&& other) noexcept : raw_(std::exchange(other.raw_, nullptr)) {}
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor();

  void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count, const void* values);
  template <class T>
  void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, const T& value) {
    set(name, type, 1, &value);
  }
  void set(cudnnBackendAttributeName_t name, const Descriptor& other) {
    set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &other.raw_);
  }
  void finalize();
  cudnnBackendDescriptor_t raw() const { return raw_; }

 private:
  cudnnBackendDescriptor_t raw_ = nullptr;
};

using Dims = std::array<int64_t, 4>;

// An operand of a graph. Its descriptor belongs to the graph.
struct Tensor {
  cudnnBackendDescriptor_t raw = nullptr;
  Dims dims{}, strides{};
};

// A graph that some engine runs, with the scratch memory it asks for.
struct Plan {
  Descriptor execution;
  int64_t workspace = 0;          // bytes
  std::vector<Descriptor> parts;  // what it was built from
  // Values by unique id: device addresses, and host addresses of scalars.
  void run(cudnnHandle_t handle, const std::map<int64_t, const void*>& values, void* workspace_data) const;
};

// Operations in the order they are added. What an operation returns stays inside the engine; arithmetic is f32.
class Graph {
 public:
  // Memory that run() is given under this id; rows start at multiples of 16 bytes.
  Tensor given(int64_t id, const Dims& dims, const Dims& strides, cudnnDataType_t type);
  // One f32 on the host, read when the plan runs.
  Tensor scalar(int64_t id);

  Tensor matmul(const Tensor& a, const Tensor& b);
  void matmul_into(const Tensor& out, const Tensor& a, const Tensor& b);
  // The result has the first operand's shape.
  Tensor pointwise(cudnnPointwiseMode_t mode, std::initializer_list<Tensor> operands,
                   cudnnDataType_t type = CUDNN_DATA_FLOAT);
  void pointwise_into(const Tensor& out, cudnnPointwiseMode_t mode, std::initializer_list<Tensor> operands,
                      cudnnDataType_t compute = CUDNN_DATA_FLOAT);
  // Each element's place along an axis.
  Tensor index(const Tensor& like, int64_t axis);
  // Over columns.
  Tensor reduce(cudnnReduceTensorOp_t operation, const Tensor& x);
  // Over the axes in which out is narrower.
  void reduce_into(const Tensor& out, cudnnReduceTensorOp_t operation, const Tensor& x);
  // Rows and columns change places.
  Tensor transposed(const Tensor& x, cudnnDataType_t type);
  // Memory between operations that the engine keeps to itself.
  Tensor between(const Dims& dims, cudnnDataType_t type);

  // The first of the engines that the library recommends and can build.
  Plan plan(cudnnHandle_t handle);

 private:
  Tensor tensor(int64_t id, const Dims& dims, const Dims& strides, cudnnDataType_t type, bool inside, bool scalar);
  void pointwise(const Tensor& out, Descriptor how, std::initializer_list<Tensor> operands);

  std::vector<Descriptor> parts_;
  std::vector<cudnnBackendDescriptor_t> operations_;
  int64_t next_id_ = 1000;  // of tensors inside
};

}  // namespace egmla::cudnn
