// What the processes ("ranks") of one run say to each other. Every rank makes the same calls in the same order.
// Sums are taken in the order of ranks: all ranks receive the same bits, and a repeated run repeats them.
// Flat tensors lie in the memory the communicator serves (the host's, or with NCCL the device's); values on the host.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "core/context.h"
#include "core/view.h"

namespace egmla {

// Where a process stands in its job; `local` counts the processes of its host.
struct Rank {
  int number = 0, count = 1;
  int local = 0, local_count = 1;
};

// What a process did last, readable from another thread while it hangs there.
class CollectiveLog {
 public:
  // `operation` lives for ever.
  void note(const char* operation, int64_t elements) {
    elements_ = elements;
    operation_ = operation;
    ++number_;
  }
  // "all_reduce_sum of 4096 elements, number 17"
  std::string text() const;

 private:
  std::atomic<const char*> operation_ = nullptr;
  std::atomic<int64_t> elements_ = 0, number_ = 0;
};

// Where a rank's part of n elements begins: parts are equal and of whole cache lines, and the little that is left is
// the last rank's.
inline int64_t part_begin(int64_t n, int rank, int ranks) {
  constexpr int64_t kUnit = 64;
  return rank == ranks ? n : n / (kUnit * ranks) * kUnit * rank;
}

class Communicator {
 public:
  // `log` is shared by the communicators of a process.
  explicit Communicator(const Rank& rank, std::shared_ptr<CollectiveLog> log = std::make_shared<CollectiveLog>())
      : rank_(rank), log_(std::move(log)) {}
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  virtual ~Communicator() = default;

  const Rank& rank() const { return rank_; }
  int size() const { return rank_.count; }
  // The one rank that owns the run's files and speaks on the console.
  bool is_root() const { return rank_.number == 0; }

  const std::shared_ptr<CollectiveLog>& log() const { return log_; }

  // The part of n elements that a rank owns between reduce_scatter_sum and all_gather.
  int64_t part_begin(int64_t n, int rank) const { return egmla::part_begin(n, rank, size()); }

  // Sums a flat f32 or f64 tensor over all ranks, in place.
  virtual void all_reduce_sum(const View& flat) = 0;
  // Leaves the sum in this rank's part; the rest keeps this rank's values.
  virtual void reduce_scatter_sum(const View& flat) = 0;
  // Brings every rank's part to all, whatever the dtype.
  virtual void all_gather(const View& flat) = 0;
  // Every rank receives the root's values, whatever the dtype.
  virtual void broadcast(const View& flat) = 0;
  // Collectives on tensors may still be under way on the device; kernels launched after wait() see their results.
  virtual void wait() = 0;
  // The same for the collectives before mark(slot) alone; slots are small numbers, used again and again.
  virtual void mark(size_t slot) = 0;
  virtual void wait_for(size_t slot) = 0;
  // Ends what is under way on the device without its peers; called from another thread before the process leaves.
  virtual void abort() {}

  // `bytes` from each rank, side by side in `all`; both on the host.
  virtual void gather_bytes(const void* own, size_t bytes, void* all) = 0;
  // Every rank's value, by rank.
  template <class T>
  std::vector<T> gather(T value) {
    static_assert(std::is_trivially_copyable_v<T>);
    std::vector<T> values(static_cast<size_t>(size()));
    gather_bytes(&value, sizeof(T), values.data());
    return values;
  }
  template <class T>
  T sum(T value) {
    T total{};
    for (const T part : gather(value)) total += part;
    return total;
  }
  template <class T>
  T maximum(T value) {
    for (const T other : gather(value)) value = other > value ? other : value;
    return value;
  }
  void barrier() { gather(char{}); }
  // The root's value.
  template <class T>
  T from_root(T value) {
    return gather(value).front();
  }

 private:
  Rank rank_;
  std::shared_ptr<CollectiveLog> log_;
};

// One process alone: nothing to exchange.
class LocalCommunicator final : public Communicator {
 public:
  LocalCommunicator() : Communicator(Rank{}) {}
  void all_reduce_sum(const View&) override {}
  void reduce_scatter_sum(const View&) override {}
  void all_gather(const View&) override {}
  void broadcast(const View&) override {}
  void wait() override {}
  void mark(size_t) override {}
  void wait_for(size_t) override {}
  void gather_bytes(const void* own, size_t bytes, void* all) override;
};

// How many processes the launcher of this one (mpirun, srun) says it has started; 1 without a launcher.
int launched_processes();

// Joins the processes of this launch through MPI; a process alone never touches MPI. When an exception ends the life of
// the result, MPI is left unfinished, so that the launcher ends the other processes as well.
std::unique_ptr<Communicator> connect_processes();

// The communicator of tensors on `context`; null where `host` serves them too (on the CPU, or for one process).
std::unique_ptr<Communicator> connect_devices(Context& context, Communicator& host);

}  // namespace egmla
