// Fiber: a function with a stack of its own, which gives the processor away only when it says so.
// For the emulated device (emulated_block.h). x86-64; known to the address sanitizer.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

namespace epic::kernels::cuda {

// Used by one thread. A fiber that is destroyed or started again before its function has returned
// drops that function's stack without unwinding it.
class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(Fiber&&) noexcept;
  Fiber& operator=(Fiber&&) noexcept;

  // `body` begins at the next Resume; it must not throw.
  void Start(std::function<void()> body);
  // Runs the fiber until it calls Yield (true) or returns (false). Not from within a fiber.
  bool Resume();
  // Called from within: goes back to the caller of Resume.
  void Yield();

 private:
  // The state has a fixed address, since stacks cannot move: so a Fiber can be moved.
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace epic::kernels::cuda
