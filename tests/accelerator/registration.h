// Gives Paddle a kernel of the device for each kernel that it has for the CPU.
//
// Paddle calls a kernel in two ways: with a KernelContext (programs), or as a function with the operator's
// own arguments (Python's operators). A pointer to such a function cannot carry data, so the number of the
// kernel's entry is a template argument, and a table holds kMaxKernels functions. Such a function takes
// everything that a caller may have put into registers and onto the stack. The kernel's definition says what
// is where.
#pragma once
#include <cstdio>
#include <set>
#include <utility>
#include "optimizers.h"

namespace accelerator {

constexpr size_t kMaxKernels = 6144;
constexpr size_t kStackSlots = 40;

struct Arguments {
  std::array<int64_t, 6> integers;
  std::array<double, 8> reals;
  std::array<int64_t, kStackSlots> stack;
};

// Reads a function's arguments in their order: integers and pointers, and real numbers, have registers of
// their own.
class ArgumentReader {
 public:
  explicit ArgumentReader(const Arguments& arguments) : arguments_(arguments) {}

  template <typename T>
  T integer() {
    int64_t slot = integers_ < 6 ? arguments_.integers[integers_++] : arguments_.stack[stack_++];
    T value;
    memcpy(&value, &slot, sizeof(T));
    return value;
  }
  template <typename T>
  T real() {
    T value;
    const void* slot = reals_ < 8 ? static_cast<const void*>(&arguments_.reals[reals_++])
                                  : static_cast<const void*>(&arguments_.stack[stack_++]);
    memcpy(&value, slot, sizeof(T));
    return value;
  }
  template <typename T>
  const T& reference() {
    return *integer<const T*>();
  }

 private:
  const Arguments& arguments_;
  size_t integers_ = 0, reals_ = 0, stack_ = 0;
};

using BaseList = std::vector<const phi::TensorBase*>;  // of add_n. Dense tensors are read only

inline void add_input(ArgumentReader& reader, std::type_index type, phi::KernelContext* context) {
  auto add_list = [&](const TensorList& list) {
    context->EmplaceBackInputs(paddle::small_vector<const phi::TensorBase*>(list.begin(), list.end()));
  };
  if (type == typeid(DenseTensor)) {
    context->EmplaceBackInput(reader.integer<const DenseTensor*>());
  } else if (type == typeid(paddle::optional<DenseTensor>)) {
    auto& tensor = reader.reference<paddle::optional<DenseTensor>>();
    context->EmplaceBackInput(tensor ? tensor.get_ptr() : nullptr);
  } else if (type == typeid(TensorList) || type == typeid(BaseList)) {
    add_list(reader.reference<TensorList>());
  } else {
    auto& list = reader.reference<paddle::optional<TensorList>>();
    if (list) add_list(*list);
    else context->EmplaceBackInput(nullptr);
  }
}

inline phi::Attribute read_attribute(ArgumentReader& reader, phi::AttributeType type) {
  using phi::AttributeType;
  switch (type) {
    case AttributeType::BOOL: return reader.integer<bool>();
    case AttributeType::INT32: return reader.integer<int>();
    case AttributeType::INT64: return reader.integer<int64_t>();
    case AttributeType::FLOAT32: return reader.real<float>();
    case AttributeType::FLOAT64: return reader.real<double>();
    case AttributeType::STRING: return reader.reference<std::string>();
    case AttributeType::BOOLS: return reader.reference<std::vector<bool>>();
    case AttributeType::INT32S: return reader.reference<std::vector<int>>();
    case AttributeType::INT64S: return reader.reference<std::vector<int64_t>>();
    case AttributeType::FLOAT32S: return reader.reference<std::vector<float>>();
    case AttributeType::FLOAT64S: return reader.reference<std::vector<double>>();
    case AttributeType::STRINGS: return reader.reference<std::vector<std::string>>();
    case AttributeType::SCALAR: return reader.reference<phi::Scalar>();
    case AttributeType::SCALARS: return reader.reference<std::vector<phi::Scalar>>();
    case AttributeType::INT_ARRAY: return reader.reference<phi::IntArray>();
    case AttributeType::DATA_TYPE: return reader.integer<DataType>();
    default: return reader.integer<phi::DataLayout>();
  }
}

inline void add_output(ArgumentReader& reader, std::type_index type, phi::KernelContext* context) {
  if (type == typeid(DenseTensor*)) return context->EmplaceBackOutput(reader.integer<DenseTensor*>());
  auto& list = reader.reference<std::vector<DenseTensor*>>();
  context->EmplaceBackOutputs(paddle::small_vector<phi::TensorBase*>(list.begin(), list.end()));
}

inline void run_kernel(size_t number, phi::KernelContext* context) {
  const KernelEntry& entry = entries()[number];
  ++counts.kernels;
  const MasterWeights* place = entry.is_in_float32 ? master_weights_of(entry.name) : nullptr;
  try {
    if (place && has_master_weights(*place, context)) return update_master_weights(entry, *place, context);
    Call(entry, context).run();
  } catch (...) {
    std::string type = phi::DataTypeToString(entry.type);
    fprintf(stderr, "accelerator: the kernel %s for %s failed\n", entry.name.c_str(), type.c_str());
    throw;
  }
}

inline void run_function(size_t number, const Arguments& arguments) {
  const auto& definition = entries()[number].cpu_kernel.args_def();
  ArgumentReader reader(arguments);
  phi::KernelContext context(reader.integer<phi::CustomContext*>());
  for (auto& input : definition.input_defs()) add_input(reader, input.type_index, &context);
  for (auto& attribute : definition.attribute_defs())
    context.EmplaceBackAttr(read_attribute(reader, attribute.type_index));
  for (auto& output : definition.output_defs()) add_output(reader, output.type_index, &context);
  run_kernel(number, &context);
}

template <size_t number>
void function_kernel(int64_t i0, int64_t i1, int64_t i2, int64_t i3, int64_t i4, int64_t i5, double r0,
                     double r1, double r2, double r3, double r4, double r5, double r6, double r7,
                     std::array<int64_t, kStackSlots> stack) {
  run_function(number, Arguments{{i0, i1, i2, i3, i4, i5}, {r0, r1, r2, r3, r4, r5, r6, r7}, stack});
}

using FunctionKernel = decltype(&function_kernel<0>);

template <size_t... numbers>
constexpr std::array<FunctionKernel, sizeof...(numbers)> function_kernels(std::index_sequence<numbers...>) {
  return {&function_kernel<numbers>...};
}
inline constexpr auto kFunctionKernels = function_kernels(std::make_index_sequence<kMaxKernels>());

// Whether the arguments are of the types that the functions above read.
inline bool is_readable(const phi::Kernel& kernel) {
  if (kernel.GetKernelRegisteredType() != phi::KernelRegisteredType::FUNCTION) return false;
  static const std::set<std::type_index> inputs = {
      typeid(DenseTensor), typeid(paddle::optional<DenseTensor>), typeid(TensorList), typeid(BaseList),
      typeid(paddle::optional<TensorList>)};
  static const std::set<std::type_index> outputs = {typeid(DenseTensor*), typeid(std::vector<DenseTensor*>)};
  static const std::set<phi::AttributeType> unreadable = {phi::AttributeType::UNDEFINED,
                                                          phi::AttributeType::PLACE};
  const auto& definition = kernel.args_def();
  for (auto& input : definition.input_defs())
    if (!inputs.count(input.type_index)) return false;
  for (auto& output : definition.output_defs())
    if (!outputs.count(output.type_index)) return false;
  for (auto& attribute : definition.attribute_defs())
    if (unreadable.count(attribute.type_index)) return false;
  size_t arguments = definition.input_defs().size() + definition.attribute_defs().size() +
                     definition.output_defs().size();
  return arguments < kStackSlots;
}

// Operators that copy between devices, or between processes. Paddle has kernels of its own for them.
inline bool is_communication(const std::string& name) {
  static const std::set<std::string> names = {
      "all_gather", "all_reduce", "all_to_all", "barrier",   "broadcast", "global_gather", "global_scatter",
      "p_recv",     "p_send",     "recv_v2",    "reduce_scatter", "send_v2", "mp_allreduce_sum"};
  for (const char* start : {"memcpy", "c_", "partial_"})
    if (name.rfind(start, 0) == 0) return true;
  return names.count(name) > 0;
}

// Adam's powers of the betas, and the number that says whether to skip the update, may stay on the host.
inline void keep_host_scalars(const std::string& name, phi::KernelArgsDef* definition) {
  if (name == "lamb") {
    for (size_t i : {5, 6, 8}) definition->input_defs()[i].SetBackend(phi::Backend::ALL_BACKEND);
    for (size_t i : {3, 4}) definition->output_defs()[i].SetBackend(phi::Backend::ALL_BACKEND);
  }
  if (name != "adam" && name != "adamw" && name != "merged_adam") return;
  auto& inputs = definition->input_defs();
  for (size_t i : {6, 7, 9})
    if (i < inputs.size()) inputs[i].SetBackend(phi::Backend::ALL_BACKEND);
  for (size_t i : {4, 5}) definition->output_defs()[i].SetBackend(phi::Backend::ALL_BACKEND);
}

inline void add_kernel(const std::string& name, phi::KernelKeyMap* kernels, const phi::Kernel& cpu_kernel,
                       DataType type, bool is_in_float32) {
  static const phi::Backend backend = paddle::experimental::StringToBackend(device_name().c_str());
  size_t number = entries().size();
  if (number >= kMaxKernels) {
    fprintf(stderr, "accelerator: kMaxKernels is %zu, and Paddle has more\n", kMaxKernels);
    abort();
  }
  entries().push_back({name, cpu_kernel, type, is_in_float32});
  auto run = [number](phi::KernelContext* context) { run_kernel(number, context); };
  phi::Kernel kernel(run, reinterpret_cast<void*>(kFunctionKernels[number]));
  *kernel.mutable_args_def() = cpu_kernel.args_def();
  // The statistics of a batch norm are float32, whatever its inputs are.
  bool has_statistics = name.rfind("batch_norm", 0) == 0;
  auto adapt = [&](auto& tensors) {
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (tensors[i].backend == phi::Backend::CPU) tensors[i].SetBackend(backend);
      if (tensors[i].dtype == DataType::FLOAT32 && is_in_float32 && !(has_statistics && i > 0))
        tensors[i].SetDataType(type);
    }
  };
  auto& definition = *kernel.mutable_args_def();
  adapt(definition.input_defs());
  adapt(definition.output_defs());
  keep_host_scalars(name, &definition);
  (*kernels)[phi::KernelKey(backend, phi::DataLayout::ALL_LAYOUT, type)] = kernel;
}

inline void add_kernels_of(const std::string& name, phi::KernelKeyMap* kernels) {
  const auto layout = phi::DataLayout::ALL_LAYOUT;
  // Paddle has kernels for all devices, such as reshape's. Those of empty don't poison, and that of numel
  // queues a copy whose source it frees.
  static const std::set<std::string> replaced = {"empty", "empty_like", "numel"};
  std::map<DataType, phi::Kernel> cpu_kernels;
  for (auto& [key, kernel] : *kernels) {
    bool has_paddles = kernels->count(phi::KernelKey(phi::Backend::CUSTOM, layout, key.dtype())) &&
                       !replaced.count(name);
    if (key.backend() == phi::Backend::CPU && key.layout() == layout && is_readable(kernel) && !has_paddles)
      cpu_kernels.emplace(key.dtype(), kernel);
  }
  // Strided memory must be read as it is. All other operators sum in float32.
  bool reads_strides = name == "contiguous" || name == "strided_copy";
  auto float_kernel = cpu_kernels.find(DataType::FLOAT32);
  bool has_float_kernel = float_kernel != cpu_kernels.end() && !reads_strides;
  for (auto& [type, kernel] : cpu_kernels) {
    bool is_in_float32 = has_float_kernel && (is_half(type) || type == DataType::FLOAT32);
    if (!is_in_float32) add_kernel(name, kernels, kernel, type, false);
  }
  if (!has_float_kernel) return;
  // A float32 kernel may get half precision too: the gradient of a cross entropy whose logits are bfloat16.
  for (DataType type : {DataType::FLOAT32, DataType::FLOAT16, DataType::BFLOAT16})
    add_kernel(name, kernels, float_kernel->second, type, true);
}

inline void add_kernels() {
  auto& kernels = phi::KernelFactory::Instance().kernels();
  entries().reserve(kMaxKernels);
  for (auto& [name, of_operator] : kernels)
    if (!is_communication(name)) add_kernels_of(name, &of_operator);
}

}  // namespace accelerator
