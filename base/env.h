// Env: all that a part of EPIC is given of the outer world. Nothing outside base/ and the main.cc
// files reads a clock, sleeps, makes threads or draws random numbers by itself; a test checks it.
// Real ones are named in main.cc, simulated ones (base/sim_loop.h) in tests.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"

namespace epic {

class Storage;         // base/storage.h
Storage& NoStorage();  // refuses everything

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  // Wall-clock time that never goes back within a process.
  virtual absl::Time Now() const = 0;
};

// Uniform 64-bit numbers: ids, seeds, jitter. Never what a model samples with (that is keyed by
// seed and position, model/sampler.h). Thread-safe.
class Random {
 public:
  virtual ~Random() = default;
  virtual uint64_t Next() = 0;
};

using Task = absl::AnyInvocable<void()>;
using TimerId = uint64_t;

// One thread's event loop: a mailbox and timers. Tasks and timers run one at a time, on its thread.
class Loop {
 public:
  virtual ~Loop() = default;
  // Runs `task` after those posted before. Any thread may call.
  virtual void Post(Task task) = 0;
  // Runs `task` once, not before `when`. Loop thread only (or before the loop runs).
  virtual TimerId At(absl::Time when, Task task) = 0;
  // The task will not run. A timer that ran or was cancelled is ignored. Loop thread only.
  virtual void Cancel(TimerId timer) = 0;
};

// Starts threads. A started thread is joined when its handle is destroyed.
class Threads {
 public:
  class Handle {
   public:
    virtual ~Handle() = default;
  };
  virtual ~Threads() = default;
  // `name` is what debuggers show; the kernel keeps its first 15 characters.
  virtual std::unique_ptr<Handle> Start(const std::string& name, std::function<void()> body) = 0;
};

// Not owned; outlives what it is given to.
struct Env {
  Clock& clock;
  Loop& loop;
  Random& random;
  Threads& threads;
  Storage& storage = NoStorage();
};

// The real world.
Clock& RealClock();
Random& RealRandom();
Threads& RealThreads();

}  // namespace epic
