// Every operation is a small descriptor that says how, and one that names its operands; finalize() checks each.
#ifdef EGMLA_WITH_CUDNN
#include <dlfcn.h>

#include <algorithm>
#include <string>

#include "kernels/cudnn_graph.cuh"

namespace egmla::cudnn {
namespace {

constexpr const char* kLibrary = "libcudnn.so.9";

Library open_library() {
  void* handle = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (!handle) handle = dlopen(EGMLA_CUDNN_FOLDER "/libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
  check(handle, "cudnn: {} was not found; install cuDNN 9 or add its folder to LD_LIBRARY_PATH", kLibrary);
  Library found;
  const auto find = [&](auto& entry, const char* name) {
    entry = reinterpret_cast<std::decay_t<decltype(entry)>>(dlsym(handle, name));
    check(entry, "cudnn: {} has no {}", kLibrary, name);
  };
  find(found.create, "cudnnCreate");
  find(found.destroy, "cudnnDestroy");
  find(found.set_stream, "cudnnSetStream");
  find(found.version, "cudnnGetVersion");
  find(found.error_string, "cudnnGetErrorString");
  find(found.create_descriptor, "cudnnBackendCreateDescriptor");
  find(found.destroy_descriptor, "cudnnBackendDestroyDescriptor");
  find(found.set_attribute, "cudnnBackendSetAttribute");
  find(found.get_attribute, "cudnnBackendGetAttribute");
  find(found.finalize, "cudnnBackendFinalize");
  find(found.execute, "cudnnBackendExecute");
  return found;
}

Dims row_major(const Dims& dims) {
  return {dims[1] * dims[2] * dims[3], dims[2] * dims[3], dims[3], 1};
}

}  // namespace

const Library& library() {
  static const Library opened = open_library();
  return opened;
}

void check_cudnn(cudnnStatus_t status, const char* what) {
  if (status != CUDNN_STATUS_SUCCESS) fail("cudnn: {}: {}", what, library().error_string(status));
}

Descriptor::Descriptor(cudnnBackendDescriptorType_t type) {
  check_cudnn(library().create_descriptor(type, &raw_), "a descriptor");
}

Descriptor::~Descriptor() {
  if (raw_) library().destroy_descriptor(raw_);
}

void Descriptor::set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
                     const void* values) {
  const cudnnStatus_t status = library().set_attribute(raw_, name, type, count, values);
  if (status != CUDNN_STATUS_SUCCESS)
    fail("cudnn: attribute {}: {}", static_cast<int>(name), library().error_string(status));
}

void Descriptor::finalize() {
  check_cudnn(library().finalize(raw_), "refused");
}

void Plan::run(cudnnHandle_t handle, const std::map<int64_t, const void*>& values, void* workspace_data) const {
  std::vector<int64_t> ids;
  std::vector<const void*> addresses;
  for (const auto& [id, address] : values) {
    ids.push_back(id);
    addresses.push_back(address);
  }
  const auto count = static_cast<int64_t>(ids.size());
  Descriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, ids.data());
  pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, addresses.data());
  pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, workspace_data);
  pack.finalize();
  check_cudnn(library().execute(handle, execution.raw(), pack.raw()), "attention");
}

Tensor Graph::tensor(int64_t id, const Dims& dims, const Dims& strides, cudnnDataType_t type, bool inside,
                     bool scalar) {
  constexpr int64_t kAlignment = 16;
  Descriptor& out = parts_.emplace_back(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  out.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, id);
  out.set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, type);
  out.set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims.data());
  out.set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides.data());
  out.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, kAlignment);
  out.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, inside);
  out.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, scalar);
  out.finalize();
  return {out.raw(), dims, strides};
}

Tensor Graph::given(int64_t id, const Dims& dims, const Dims& strides, cudnnDataType_t type) {
  return tensor(id, dims, strides, type, false, false);
}

Tensor Graph::scalar(int64_t id) {
  return tensor(id, {1, 1, 1, 1}, {1, 1, 1, 1}, CUDNN_DATA_FLOAT, false, true);
}

Tensor Graph::between(const Dims& dims, cudnnDataType_t type) {
  return tensor(next_id_++, dims, row_major(dims), type, true, false);
}

Tensor Graph::matmul(const Tensor& a, const Tensor& b) {
  const Tensor out = between({a.dims[0], a.dims[1], a.dims[2], b.dims[3]}, CUDNN_DATA_FLOAT);
  matmul_into(out, a, b);
  return out;
}

void Graph::matmul_into(const Tensor& out, const Tensor& a, const Tensor& b) {
  Descriptor how(CUDNN_BACKEND_MATMUL_DESCRIPTOR);
  how.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
  how.finalize();
  Descriptor operation(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, a.raw);
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, b.raw);
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, out.raw);
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
  operation.finalize();
  operations_.push_back(operation.raw());
  parts_.push_back(std::move(how));
  parts_.push_back(std::move(operation));
}

Tensor Graph::pointwise(cudnnPointwiseMode_t mode, std::initializer_list<Tensor> operands, cudnnDataType_t type) {
  const Tensor out = between(operands.begin()->dims, type);
  pointwise_into(out, mode, operands, type == CUDNN_DATA_BOOLEAN ? type : CUDNN_DATA_FLOAT);
  return out;
}

void Graph::pointwise_into(const Tensor& out, cudnnPointwiseMode_t mode, std::initializer_list<Tensor> operands,
                           cudnnDataType_t compute) {
  Descriptor how(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  how.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, mode);
  how.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, compute);
  pointwise(out, std::move(how), operands);
}

Tensor Graph::index(const Tensor& like, int64_t axis) {
  Descriptor how(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  how.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, CUDNN_POINTWISE_GEN_INDEX);
  how.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
  how.set(CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, axis);
  const Tensor out = between(like.dims, CUDNN_DATA_INT32);
  pointwise(out, std::move(how), {like});
  return out;
}

void Graph::pointwise(const Tensor& out, Descriptor how, std::initializer_list<Tensor> operands) {
  constexpr std::array kPlaces = {CUDNN_ATTR_OPERATION_POINTWISE_XDESC, CUDNN_ATTR_OPERATION_POINTWISE_BDESC,
                                  CUDNN_ATTR_OPERATION_POINTWISE_TDESC};
  constexpr float kOne = 1.0f;
  how.finalize();
  Descriptor operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
  auto place = kPlaces.begin();
  for (const Tensor& operand : operands) operation.set(*place++, CUDNN_TYPE_BACKEND_DESCRIPTOR, operand.raw);
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, out.raw);
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_ALPHA1, CUDNN_TYPE_FLOAT, kOne);
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_ALPHA2, CUDNN_TYPE_FLOAT, kOne);
  operation.finalize();
  operations_.push_back(operation.raw());
  parts_.push_back(std::move(how));
  parts_.push_back(std::move(operation));
}

Tensor Graph::reduce(cudnnReduceTensorOp_t operation, const Tensor& x) {
  const Tensor out = between({x.dims[0], x.dims[1], x.dims[2], 1}, CUDNN_DATA_FLOAT);
  reduce_into(out, operation, x);
  return out;
}

void Graph::reduce_into(const Tensor& out, cudnnReduceTensorOp_t operation, const Tensor& x) {
  Descriptor how(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
  how.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
  how.set(CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, operation);
  how.finalize();
  Descriptor node(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
  node.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, x.raw);
  node.set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, out.raw);
  node.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
  node.finalize();
  operations_.push_back(node.raw());
  parts_.push_back(std::move(how));
  parts_.push_back(std::move(node));
}

Tensor Graph::transposed(const Tensor& x, cudnnDataType_t type) {
  const Tensor out = tensor(next_id_++, {x.dims[0], x.dims[1], x.dims[3], x.dims[2]},
                            {x.strides[0], x.strides[1], x.strides[3], x.strides[2]}, type, true, false);
  Descriptor operation(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, x.raw);
  operation.set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, out.raw);
  operation.finalize();
  operations_.push_back(operation.raw());
  parts_.push_back(std::move(operation));
  return out;
}

Plan Graph::plan(cudnnHandle_t handle) {
  Descriptor graph(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, handle);
  graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, static_cast<int64_t>(operations_.size()),
            operations_.data());
  graph.finalize();
  Descriptor advice(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  advice.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
  advice.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, CUDNN_HEUR_MODE_A);
  advice.finalize();
  int64_t count = 0;
  check_cudnn(library().get_attribute(advice.raw(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0,
                                      &count, nullptr),
              "no engine");
  std::vector<Descriptor> configurations;
  std::vector<cudnnBackendDescriptor_t> raw;
  for (int64_t i = 0; i < count; ++i)
    raw.push_back(configurations.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR).raw());
  check_cudnn(library().get_attribute(advice.raw(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, count,
                                      &count, raw.data()),
              "no engine");
  for (int64_t i = 0; i < count; ++i) {
    Plan out{.execution = Descriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR), .workspace = 0, .parts = {}};
    out.execution.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, handle);
    out.execution.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configurations[static_cast<size_t>(i)]);
    if (library().finalize(out.execution.raw()) != CUDNN_STATUS_SUCCESS) continue;
    int64_t found = 0;
    check_cudnn(library().get_attribute(out.execution.raw(), CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64,
                                        1, &found, &out.workspace),
                "a plan's workspace");
    out.parts = std::move(parts_);
    out.parts.push_back(std::move(graph));
    out.parts.push_back(std::move(configurations[static_cast<size_t>(i)]));
    return out;
  }
  fail("cudnn: none of {} engines can be built", count);
}

}  // namespace egmla::cudnn
#endif
