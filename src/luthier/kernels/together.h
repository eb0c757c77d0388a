// Several products that do not need one another, shared out among the threads in one go: between two of them nobody waits. What waits at the end of
// each is a tenth of an update of a few hundred tokens.
#pragma once

#include "tiles.h"

#ifdef LUTHIER_HAS_TILES
#include <atomic>
#include <deque>
#include <omp.h>

namespace luthier {

constexpr int64_t FEW_NUMBERS = 1 << 15;  // up to so many, waking a second thread costs more than it saves

// A job says how many numbers it reads, and has a `run` that takes shares of it until there are none; every thread calls it.
template <typename... Jobs> void together(int64_t threads, std::deque<Jobs> &...jobs) {
    int64_t numbers = 0;
    ([&] { for (const auto &job : jobs) numbers += job.numbers(); }(), ...);
    Shortage shortage;
#pragma omp parallel num_threads(numbers < FEW_NUMBERS ? 1 : threads)
    ([&] { for (auto &job : jobs) shortage.in_thread([&] { job.run(); }); }(), ...);
    shortage.rethrow();
}

// Numbers from 0 on, each handed out once
class Claims {
  public:
    int64_t next() { return taken.fetch_add(1, std::memory_order_relaxed); }

  private:
    std::atomic<int64_t> taken{0};
};

}  // namespace luthier
#endif
