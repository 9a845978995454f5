#include "kernels/cuda/device/fiber.h"

#include <cstdint>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Saves on the old stack what the System V ABI lets a callee keep, stores its pointer in *save, and
// goes on at `load`, where the other stack was left. The compiler saves all else around the call.
// MXCSR is not switched: fibers share the thread's modes for rounding and denormals.
extern "C" void epic_switch_stacks(void** save, void* load);
asm(R"(
.text
.globl epic_switch_stacks
.type epic_switch_stacks, @function
epic_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size epic_switch_stacks, .-epic_switch_stacks
)");

namespace epic::kernels::cuda {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
// epic_switch_stacks pops this many registers before it returns.
constexpr int kSavedRegisters = 6;

}  // namespace

struct Fiber::State {
  std::unique_ptr<std::byte[]> stack{new std::byte[kStackBytes]};
  std::function<void()> body;
  void* stack_pointer = nullptr;
  void* caller_pointer = nullptr;
  bool done = true;
  // For the address sanitizer: the fake stacks of both sides and the caller's real one.
  void* fake_stack = nullptr;
  void* caller_fake_stack = nullptr;
  const void* caller_stack = nullptr;
  size_t caller_stack_bytes = 0;

  // Main takes no argument: it finds here which fiber has been resumed.
  static State* starting;

  void EnterFiber() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&caller_fake_stack, stack.get(), kStackBytes);
#endif
    epic_switch_stacks(&caller_pointer, stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(caller_fake_stack, nullptr, nullptr);
#endif
  }

  void ArriveInFiber() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, &caller_stack, &caller_stack_bytes);
#endif
  }

  void LeaveFiber() {
#if defined(__SANITIZE_ADDRESS__)
    // Null tells the sanitizer that the fiber never comes back, and frees its fake stack.
    __sanitizer_start_switch_fiber(done ? nullptr : &fake_stack, caller_stack, caller_stack_bytes);
#endif
    epic_switch_stacks(&stack_pointer, caller_pointer);
    ArriveInFiber();
  }

  static void Main() {
    State* self = starting;
    self->ArriveInFiber();
    self->body();
    self->done = true;
    self->LeaveFiber();
  }
};

Fiber::State* Fiber::State::starting = nullptr;

Fiber::Fiber() : state_(std::make_unique<State>()) {}
Fiber::~Fiber() = default;
Fiber::Fiber(Fiber&&) noexcept = default;
Fiber& Fiber::operator=(Fiber&&) noexcept = default;

void Fiber::Start(std::function<void()> body) {
  State& state = *state_;
#if defined(__SANITIZE_ADDRESS__)
  // A function that was dropped halfway has left poisoned frames on this stack.
  __asan_unpoison_memory_region(state.stack.get(), kStackBytes);
#endif
  state.body = std::move(body);
  state.fake_stack = nullptr;
  state.done = false;
  const auto top = reinterpret_cast<uintptr_t>(state.stack.get() + kStackBytes) & ~uintptr_t{15};
  // The first switch pops six registers and returns into Main. The word above is Main's return
  // address, which is never used, and gives the alignment that the ABI wants at a function's entry.
  auto* slot = reinterpret_cast<uintptr_t*>(top);
  *--slot = 0;  // the return address of Main
  *--slot = reinterpret_cast<uintptr_t>(&State::Main);
  for (int i = 0; i < kSavedRegisters; ++i) *--slot = 0;
  state.stack_pointer = slot;
}

bool Fiber::Resume() {
  State::starting = state_.get();
  state_->EnterFiber();
  return !state_->done;
}

void Fiber::Yield() { state_->LeaveFiber(); }

}  // namespace epic::kernels::cuda
