// The settings of the test device, and its counts of what the host did.
#pragma once
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include "paddle/phi/backends/device_ext.h"

namespace accelerator {

constexpr int kMaxDevices = 64;
constexpr unsigned char kPoison = 0xFB;
constexpr size_t kMegabyte = size_t(1) << 20;

inline long environment_number(const char* name, long otherwise) {
  const char* text = getenv(name);
  return text && *text ? atol(text) : otherwise;
}

inline const std::string& device_name() {
  static const char* text = getenv("ACCELERATOR_NAME");
  static const std::string name = text && *text ? text : "iluvatar_gpu";
  return name;
}

inline int device_count() {
  static const long count = environment_number("ACCELERATOR_DEVICES", 2);
  return static_cast<int>(std::clamp(count, 1L, static_cast<long>(kMaxDevices)));
}

inline size_t memory_size() {
  static const size_t size = environment_number("ACCELERATOR_MEMORY_MB", 8192) * kMegabyte;
  return size;
}

// What the host did, in the order in which device_counts() reports it.
struct Counts {
  std::atomic<int64_t> copies_to_device{0};         // the host waited until they were done
  std::atomic<int64_t> copies_from_device{0};       // the host waited until they were done
  std::atomic<int64_t> queued_copies_to_device{0};
  std::atomic<int64_t> queued_copies_from_device{0};
  std::atomic<int64_t> waits{0};                      // for a device, a stream or an event
  std::atomic<int64_t> kernels{0};
  std::atomic<int64_t> collectives{0};
  std::atomic<int64_t> changed_sources{0};          // changed after a copy was queued and before it was due

  std::array<std::atomic<int64_t>*, 8> all() {
    return {&copies_to_device, &copies_from_device, &queued_copies_to_device, &queued_copies_from_device,
            &waits,            &kernels,            &collectives,             &changed_sources};
  }
};

inline Counts counts;

}  // namespace accelerator
