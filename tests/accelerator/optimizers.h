// Optimizers with master weights. Paddle's CPU kernels have none.
#pragma once
#include "kernels.h"

namespace accelerator {

// The places of the master weights among the inputs and of the attribute that says that there are any.
struct MasterWeights {
  size_t input;
  size_t attribute;
};

inline const MasterWeights* master_weights_of(const std::string& name) {
  static const std::map<std::string, MasterWeights> places = {
      {"momentum", {4, 4}}, {"merged_momentum", {4, 4}}, {"adam", {8, 5}},
      {"adamw", {8, 8}},    {"merged_adam", {8, 3}},     {"sgd", {3, 0}},
      {"rmsprop", {6, 4}},  {"lamb", {7, 5}},
  };
  auto place = places.find(name);
  return place == places.end() ? nullptr : &place->second;
}

inline bool has_master_weights(const MasterWeights& place, phi::KernelContext* arguments) {
  auto range = arguments->InputRangeAt(place.input);
  if (range.first >= range.second) return false;
  auto* weights = static_cast<const DenseTensor*>(arguments->MutableInputAt(range.first));
  return weights && weights->initialized();
}

// Runs the float32 kernel on the master weights, and rounds them to the parameters.
inline void update_master_weights(const KernelEntry& entry, const MasterWeights& place,
                                  phi::KernelContext* arguments) {
  const auto& definition = entry.cpu_kernel.args_def();
  size_t last_output = definition.output_defs().size() - 1;
  auto& device = arguments->GetDeviceContext<phi::CustomContext>();
  phi::KernelContext swapped(const_cast<phi::CustomContext*>(&device));
  for (size_t i = 0; i < definition.input_defs().size(); ++i) {
    if (i == place.input) {
      swapped.EmplaceBackInput(nullptr);
      continue;
    }
    auto range = arguments->InputRangeAt(i == 0 ? place.input : i);
    paddle::small_vector<const phi::TensorBase*> group;
    for (int k = range.first; k < range.second; ++k) group.push_back(arguments->MutableInputAt(k));
    swapped.EmplaceBackInputs(group);
  }
  for (size_t i = 0; i <= last_output; ++i) {
    auto range = arguments->OutputRangeAt(i == 0 ? last_output : i);
    paddle::small_vector<phi::TensorBase*> group;
    for (int k = range.first; k < range.second; ++k)
      group.push_back(i == last_output ? nullptr : arguments->MutableOutputAt(k));
    swapped.EmplaceBackOutputs(group);
  }
  for (size_t i = 0; i < arguments->AttrsSize(); ++i)
    swapped.EmplaceBackAttr(i == place.attribute ? phi::Attribute(false) : arguments->AttrAt(i));
  Call(entry, &swapped).run();

  auto parameters = arguments->OutputRangeAt(0);
  int offset = arguments->OutputRangeAt(last_output).first - parameters.first;
  for (int k = parameters.first; k < parameters.second; ++k) {
    auto* parameter = arguments->MutableOutputAt<DenseTensor>(k);
    auto* weights = arguments->MutableOutputAt<DenseTensor>(k + offset);
    convert(weights->data(), DataType::FLOAT32, parameter->data(), parameter->dtype(), parameter->numel());
  }
}

}  // namespace accelerator
