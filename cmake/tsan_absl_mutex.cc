// Tells the thread sanitizer about absl::Mutex, which lies in a library that was built without it.
// Linked into the tests of that build alone. Each function here takes the place of the library's
// for calls from the tests' own code, and calls the library's.
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>
#include <unistd.h>

#include "absl/synchronization/mutex.h"

namespace {

template <class Function>
Function Next(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

void AfterLock(void* mutex) { __tsan_acquire(mutex); }
void BeforeUnlock(void* mutex) { __tsan_release(mutex); }

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  static const auto next = Next<void (*)(Mutex*)>("_ZN4absl7debian35Mutex4LockEv");
  next(this);
  AfterLock(this);
}

void Mutex::Unlock() {
  static const auto next = Next<void (*)(Mutex*)>("_ZN4absl7debian35Mutex6UnlockEv");
  BeforeUnlock(this);
  next(this);
}

void CondVar::Wait(Mutex* mutex) {
  static const auto next =
      Next<void (*)(CondVar*, Mutex*)>("_ZN4absl7debian37CondVar4WaitEPNS0_5MutexE");
  BeforeUnlock(mutex);
  next(this, mutex);
  AfterLock(mutex);
}

// The library has conditions evaluated by whichever thread unlocks, which the sanitizer would take
// for a race. Asking again and again is enough for tests.
void Mutex::Await(const Condition& condition) {
  while (!condition.Eval()) {
    Unlock();
    usleep(100);
    Lock();
  }
}

ABSL_NAMESPACE_END
}  // namespace absl
