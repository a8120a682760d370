// Kernels of the test device: each runs Paddle's own kernel for the CPU.
//
// The device's memory is the host's, so a CPU kernel reads and writes it in place. It only has to believe
// that a tensor is on the CPU: it gets copies of the tensors whose memory is a Window onto the device's
// memory. Float16 and bfloat16, for which the CPU has few kernels, are computed in float32.
#pragma once
#include <immintrin.h>
#include <map>
#include <typeindex>
#include <unordered_map>
#include <vector>
#include "paddle/phi/backends/context_pool.h"
#include "paddle/phi/backends/cpu/cpu_context.h"
#include "paddle/phi/backends/custom/custom_context.h"
#include "paddle/phi/common/bfloat16.h"
#include "paddle/phi/common/float16.h"
#include "paddle/phi/common/int_array.h"
#include "paddle/phi/common/scalar.h"
#include "paddle/phi/core/dense_tensor.h"
#include "paddle/phi/core/generator.h"
#include "paddle/phi/core/kernel_registry.h"
#include "paddle/phi/core/tensor_utils.h"
#include "runtime.h"

#if !defined(__x86_64__)
#error "The kernels read Paddle's arguments as x86-64 passes them."
#endif

namespace accelerator {

using phi::DataType;
using phi::DenseTensor;
using Memory = std::shared_ptr<phi::Allocation>;
using TensorList = std::vector<const DenseTensor*>;

inline bool is_half(DataType type) { return type == DataType::FLOAT16 || type == DataType::BFLOAT16; }

// Device memory that says that it is on the CPU.
class Window : public phi::Allocation {
 public:
  explicit Window(Memory memory)
      : phi::Allocation(memory->ptr(), memory->size(), phi::CPUPlace()), memory_(std::move(memory)) {}
  const Memory& device_memory() const { return memory_; }

 private:
  Memory memory_;
};

// Gives CPU kernels windows onto new device memory. It is poisoned each time, because Paddle keeps what is
// freed.
class WindowAllocator : public phi::Allocator {
 public:
  const phi::CustomContext* context = nullptr;

  Memory device_memory(size_t size) const {
    auto& source = size ? context->GetAllocator() : context->GetZeroAllocator();
    Memory memory = const_cast<phi::Allocator&>(source).Allocate(size);
    if (size) memset(memory->ptr(), kPoison, size);
    return memory;
  }
  AllocationPtr Allocate(size_t size) override {
    return AllocationPtr(new Window(device_memory(size)), [](phi::Allocation* window) { delete window; });
  }
  bool IsAllocThreadSafe() const override { return true; }
};

// The float32 numbers of a half-precision tensor, on the host. They are aligned as device memory is, because
// the order in which MKL adds depends on it.
class HostFloats : public phi::Allocation {
 public:
  explicit HostFloats(size_t count)
      : phi::Allocation(aligned_memory(count * sizeof(float)), count * sizeof(float), phi::CPUPlace()) {}
  ~HostFloats() override { free(ptr()); }
};

template <typename Source, typename Target>
void convert(const void* source, void* target, int64_t count) {
  auto* from = static_cast<const Source*>(source);
  auto* to = static_cast<Target*>(target);
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Target>(from[i]);
}

// The same for float16, eight numbers at once. They are most of the time of a step in float16 otherwise.
__attribute__((target("avx,f16c"))) inline void convert_from_float16(const void* source, void* target,
                                                                     int64_t count) {
  auto* from = static_cast<const phi::dtype::float16*>(source);
  auto* to = static_cast<float*>(target);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  convert<phi::dtype::float16, float>(from + i, to + i, count - i);
}
__attribute__((target("avx,f16c"))) inline void convert_to_float16(const void* source, void* target,
                                                                   int64_t count) {
  auto* from = static_cast<const float*>(source);
  auto* to = static_cast<phi::dtype::float16*>(target);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
  convert<float, phi::dtype::float16>(from + i, to + i, count - i);
}

// Converts between float32 and a half precision.
inline void convert(const void* source, DataType from, void* target, DataType to, int64_t count) {
  static const bool has_f16c = __builtin_cpu_supports("f16c");
  if (from == DataType::FLOAT16 && has_f16c) return convert_from_float16(source, target, count);
  if (to == DataType::FLOAT16 && has_f16c) return convert_to_float16(source, target, count);
  if (from == DataType::FLOAT16) return convert<phi::dtype::float16, float>(source, target, count);
  if (from == DataType::BFLOAT16) return convert<phi::dtype::bfloat16, float>(source, target, count);
  if (to == DataType::FLOAT16) return convert<float, phi::dtype::float16>(source, target, count);
  return convert<float, phi::dtype::bfloat16>(source, target, count);
}

// DenseTensor's own function takes no tensor whose type is still unknown.
inline void set_meta(DenseTensor* tensor, const phi::DenseTensorMeta& meta) {
  *phi::DenseTensorUtils::GetMutableMeta(tensor) = meta;
}

// What a kernel of the device runs.
struct KernelEntry {
  std::string name;
  phi::Kernel cpu_kernel;
  DataType type;       // of the device's kernel
  bool is_in_float32;  // the CPU kernel is float32's, and tensors in half precision are converted for it
};

inline std::vector<KernelEntry>& entries() {
  static auto* list = new std::vector<KernelEntry>;
  return *list;
}

// One thread's context for CPU kernels. It is never deleted, because threads end after Paddle does.
struct HostContext {
  WindowAllocator allocator;
  phi::CPUContext context{phi::CPUPlace()};

  HostContext() {
    auto* paddles = phi::DeviceContextPool::Instance().Get(phi::CPUPlace());
    context.SetAllocator(&allocator);
    context.SetZeroAllocator(&allocator);
    context.SetHostAllocator(&paddles->GetHostAllocator());
    context.SetHostZeroAllocator(&paddles->GetHostZeroAllocator());
    context.SetHostGenerator(phi::DefaultCPUGenerator().get());
  }
  static HostContext& of_thread() {
    static thread_local auto* context = new HostContext;
    return *context;
  }
};

// One call of a CPU kernel with the tensors of a device kernel's call.
class Call {
 public:
  Call(const KernelEntry& entry, phi::KernelContext* arguments)
      : entry_(entry),
        device_(arguments->GetDeviceContext<phi::CustomContext>()),
        host_(HostContext::of_thread()),
        arguments_(arguments) {}

  void run() {
    if (device_.GetStream()) stream_of(static_cast<C_Stream>(device_.stream()))->wait();
    host_.allocator.context = &device_;
    host_.context.SetGenerator(phi::DefaultCustomDeviceGenerator(device_.GetPlace()).get());
    phi::KernelContext translated(&host_.context);
    for (size_t i = 0; i < arguments_->InputsSize(); ++i)
      translated.EmplaceBackInputWithoutSetRange(host_tensor(arguments_->MutableInputAt(i)));
    for (size_t i = 0; i < arguments_->OutputsSize(); ++i)
      translated.EmplaceBackOutputWithoutSetRange(host_output(arguments_->MutableOutputAt(i)));
    const auto& definition = entry_.cpu_kernel.args_def();
    for (size_t i = 0; i < definition.input_defs().size(); ++i)
      translated.AssignInputRange(std::pair<int, int>(arguments_->InputRangeAt(i)), i);
    for (size_t i = 0; i < definition.output_defs().size(); ++i)
      translated.AssignOutputRange(std::pair<int, int>(arguments_->OutputRangeAt(i)), i);
    for (size_t i = 0; i < arguments_->AttrsSize(); ++i)
      translated.EmplaceBackAttr(arguments_->AttrAt(i));
    entry_.cpu_kernel(&translated);
    for (auto& [output, result] : outputs_) hand_over(*result, output);
  }

 private:
  // The CPU kernel's tensor for a tensor of the call. An output that is also an input has one.
  DenseTensor* host_tensor(const phi::TensorBase* base) {
    if (!base) return nullptr;
    auto* tensor = static_cast<const DenseTensor*>(base);
    auto& translated = tensors_[tensor];
    if (!translated) translated = std::make_unique<DenseTensor>(translate(*tensor));
    return translated.get();
  }

  DenseTensor* host_output(phi::TensorBase* base) {
    DenseTensor* translated = host_tensor(base);
    if (base) outputs_.emplace_back(static_cast<DenseTensor*>(base), translated);
    return translated;
  }

  DenseTensor translate(const DenseTensor& tensor) {
    phi::DenseTensorMeta meta = tensor.meta();
    if (!tensor.initialized()) {
      DenseTensor empty;
      set_meta(&empty, meta);
      return empty;
    }
    if (!entry_.is_in_float32 || !is_half(tensor.dtype())) return DenseTensor(window(tensor.Holder()), meta);
    // Two tensors with one memory keep one memory in float32.
    auto& floats = floats_[tensor.data()];
    if (!floats) {
      floats = std::make_shared<HostFloats>(tensor.numel());
      convert(tensor.data(), tensor.dtype(), floats->ptr(), DataType::FLOAT32, tensor.numel());
    }
    meta.dtype = DataType::FLOAT32;
    meta.offset = 0;
    return DenseTensor(floats, meta);
  }

  Memory window(const Memory& memory) {
    if (memory->place().GetType() != phi::AllocationType::CUSTOM) return memory;
    auto& view = windows_[memory.get()];
    if (!view) view = std::make_shared<Window>(memory);
    return view;
  }

  // Gives the call's output what the CPU kernel wrote.
  void hand_over(const DenseTensor& result, DenseTensor* output) {
    phi::DenseTensorMeta meta = result.meta();
    if (!result.has_allocation()) {
      if (meta.dtype == DataType::UNDEFINED || entry_.is_in_float32) meta.dtype = output->dtype();
      set_meta(output, meta);
      return;
    }
    // Paddle sets an output's type before the call. If it did not, the output has the type of the kernel.
    DataType expected = output->dtype() == DataType::UNDEFINED ? entry_.type : output->dtype();
    if (entry_.is_in_float32 && meta.dtype == DataType::FLOAT32 && is_half(expected)) {
      meta.dtype = expected;
      meta.offset = output->initialized() ? output->offset() : 0;
      size_t size = result.numel() * sizeof(uint16_t);
      if (!output->initialized() || output->Holder()->size() < size + meta.offset) {
        meta.offset = 0;
        replace_memory(output, host_.allocator.device_memory(size), meta);
      }
      set_meta(output, meta);
      if (size) convert(result.data(), DataType::FLOAT32, output->data(), expected, result.numel());
      return;
    }
    if (auto* view = dynamic_cast<Window*>(result.Holder().get())) {
      if (output->Holder() != view->device_memory()) replace_memory(output, view->device_memory(), meta);
    } else if (output->Holder() != result.Holder()) {
      const auto& source = result.Holder();
      Memory copy = host_.allocator.device_memory(source->size());
      if (source->size()) memcpy(copy->ptr(), source->ptr(), source->size());
      replace_memory(output, copy, meta);
    }
    set_meta(output, meta);
  }

  static void replace_memory(DenseTensor* output, const Memory& memory, const phi::DenseTensorMeta& meta) {
    output->clear();
    set_meta(output, meta);
    output->ResetHolder(memory);
  }

  const KernelEntry& entry_;
  const phi::CustomContext& device_;
  HostContext& host_;
  phi::KernelContext* arguments_;
  std::unordered_map<const DenseTensor*, std::unique_ptr<DenseTensor>> tensors_;
  std::unordered_map<const phi::Allocation*, Memory> windows_;
  std::unordered_map<const void*, Memory> floats_;
  std::vector<std::pair<DenseTensor*, DenseTensor*>> outputs_;
};

}  // namespace accelerator
