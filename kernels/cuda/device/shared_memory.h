// The emulated shared memory of a block. Besides its bytes it knows, for each byte, who wrote it
// how, and reports reads out of bounds, reads of bytes that nobody wrote, and reads by the
// asynchronous proxy (WGMMA, bulk copies) of bytes that their writer has not fenced.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace epic::kernels::cuda {

// A kernel broke a rule of the device.
class DeviceError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

class SharedMemory {
 public:
  // Addresses begin here, as on the device, where the first KiB is not the kernel's.
  static constexpr uint32_t kBase = 1024;

  SharedMemory(int bytes, int threads);

  // By an instruction of `thread`.
  void Read(uint32_t address, void* to, int bytes) const;
  void Write(uint32_t address, const void* from, int bytes, int thread);
  // By the asynchronous proxy.
  void AsyncRead(uint32_t address, void* to, int bytes) const;
  void AsyncWrite(uint32_t address, const void* from, int bytes);
  // Makes what `thread` wrote until now visible to the asynchronous proxy.
  void Fence(int thread) { ++fences_[thread]; }

 private:
  void Check(uint32_t address, int bytes, const char* what) const;

  int size_;
  std::unique_ptr<std::byte[]> bytes_;
  // Per byte: kUnwritten, kAsync, or the writing thread and its number of fences at that time.
  std::vector<uint32_t> writers_;
  // A byte's writer has fenced it if its number of fences has grown since.
  std::vector<uint32_t> fences_;  // per thread
};

}  // namespace epic::kernels::cuda
