#include "base/env.h"

#include <pthread.h>

#include <random>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"

namespace epic {
namespace {

class WallClock : public Clock {
 public:
  absl::Time Now() const override {
    // An adjusted host clock must not turn time back within a process, so only its origin is wall
    // time.
    return origin_ + absl::FromChrono(std::chrono::steady_clock::now() - steady_origin_);
  }

 private:
  const absl::Time origin_ = absl::Now();
  const std::chrono::steady_clock::time_point steady_origin_ = std::chrono::steady_clock::now();
};

// Nonces and the keys of pairs are drawn from here, so these are the machine's own numbers: those
// of a generator could be computed from others that a stranger has seen.
class DeviceRandom : public Random {
 public:
  uint64_t Next() override {
    const absl::MutexLock lock(&mutex_);
    return (static_cast<uint64_t>(device_()) << 32) | device_();
  }

 private:
  absl::Mutex mutex_;
  std::random_device device_ ABSL_GUARDED_BY(mutex_);
};

class StdThreads : public Threads {
  class JoinedThread : public Handle {
   public:
    explicit JoinedThread(std::thread thread) : thread_(std::move(thread)) {}
    ~JoinedThread() override { thread_.join(); }

   private:
    std::thread thread_;
  };

 public:
  std::unique_ptr<Handle> Start(const std::string& name, std::function<void()> body) override {
    // The thread names itself, so that debuggers tell it from the others from its first step on.
    std::thread thread([name, body = std::move(body)] {
      pthread_setname_np(pthread_self(), name.substr(0, 15).c_str());
      body();
    });
    return std::make_unique<JoinedThread>(std::move(thread));
  }
};

}  // namespace

Clock& RealClock() {
  static WallClock clock;
  return clock;
}

Random& RealRandom() {
  static DeviceRandom random;
  return random;
}

Threads& RealThreads() {
  static StdThreads threads;
  return threads;
}

}  // namespace epic
