// A std::mutex that clang can check: with -Wthread-safety it is an error to touch a member that is
// marked KERNEL_GUARDED_BY(mutex_) without a MutexLock on that mutex. kernels/ builds alone, so it
// cannot use absl::Mutex. Other compilers see no attributes.
//
//   mutable Mutex mutex_;
//   std::map<const std::byte*, Range> ranges_ KERNEL_GUARDED_BY(mutex_);
#pragma once

#include <mutex>

#ifdef __clang__
#define KERNEL_THREAD_ATTRIBUTE(attribute) __attribute__((attribute))
#else
#define KERNEL_THREAD_ATTRIBUTE(attribute)
#endif
#define KERNEL_CAPABILITY(name) KERNEL_THREAD_ATTRIBUTE(capability(name))
#define KERNEL_SCOPED_CAPABILITY KERNEL_THREAD_ATTRIBUTE(scoped_lockable)
#define KERNEL_GUARDED_BY(mutex) KERNEL_THREAD_ATTRIBUTE(guarded_by(mutex))
#define KERNEL_REQUIRES(mutex) KERNEL_THREAD_ATTRIBUTE(exclusive_locks_required(mutex))
#define KERNEL_ACQUIRE(...) KERNEL_THREAD_ATTRIBUTE(acquire_capability(__VA_ARGS__))
#define KERNEL_RELEASE(...) KERNEL_THREAD_ATTRIBUTE(release_capability(__VA_ARGS__))

namespace epic::kernels {

class KERNEL_CAPABILITY("mutex") Mutex {
 public:
  void Lock() KERNEL_ACQUIRE() { mutex_.lock(); }
  void Unlock() KERNEL_RELEASE() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
};

// Holds the mutex for the life of the object.
class KERNEL_SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) KERNEL_ACQUIRE(mutex) : mutex_(mutex) { mutex_.Lock(); }
  ~MutexLock() KERNEL_RELEASE() { mutex_.Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

}  // namespace epic::kernels
