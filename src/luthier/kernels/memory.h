// When there is no memory left: std::bad_alloc must leave neither a thread of a parallel region nor C++, either of which ends the process. It is
// caught in each thread, thrown again behind the region, and Python is answered a number, of which compiled.py makes a MemoryError.
#pragma once

#include <atomic>
#include <new>
#include <vector>

namespace luthier {

// Of one parallel region
class Shortage {
  public:
    // In a thread: what fails is left undone, and the thread goes on to what all threads must reach
    template <typename Body> void in_thread(Body body) noexcept {
        try {
            body();
        } catch (const std::bad_alloc &) {
            happened.store(true, std::memory_order_relaxed);
        }
    }
    // Behind the region
    void rethrow() const {
        if (happened.load()) throw std::bad_alloc();
    }

  private:
    std::atomic<bool> happened{false};
};

// At least so many numbers, of any value: what there was is given back first, so that memory never holds both
template <typename T> void make_room(std::vector<T> &numbers, int64_t count) {
    if (static_cast<int64_t>(numbers.size()) >= count) return;
    std::vector<T>().swap(numbers);
    numbers.resize(count);
}

template <auto F> struct Answering;
template <typename... A, void (*F)(A...)> struct Answering<F> {
    static int call(A... arguments) noexcept {
        try {
            F(arguments...);
            return 0;
        } catch (const std::bad_alloc &) {
            return 1;
        }
    }
};

}  // namespace luthier

// The function for Python: NAME_call points to one that answers 1 where memory ran out, else 0. C++ calls NAME, which throws.
#define LUTHIER_CALL(NAME) extern "C" void *const NAME##_call = reinterpret_cast<void *>(&luthier::Answering<&NAME>::call);
