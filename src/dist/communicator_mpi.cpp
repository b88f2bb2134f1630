// MPI moves bytes; the sums are ours, because MPI fixes neither their order nor that all ranks get the same bits.
// all-reduce = reduce-scatter (all-to-all, then each rank sums its part in the order of ranks) + all-gather.
#include "dist/communicator_mpi.h"

#include "core/check.h"

#ifdef EGMLA_WITH_MPI

#define OMPI_SKIP_MPICXX 1
#include <mpi.h>

#include <algorithm>
#include <exception>
#include <limits>

namespace egmla {
namespace {

constexpr int64_t kBroadcastBytes = int64_t{1} << 28;

void check_mpi(int status, const char* call) {
  if (status == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(status, text, &length);
  fail("{}: {}", call, text);
}

Rank rank_in_world() {
  Rank rank;
  MPI_Comm host = MPI_COMM_NULL;
  check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &rank.number), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &rank.count), "MPI_Comm_size");
  check_mpi(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank.number, MPI_INFO_NULL, &host),
            "MPI_Comm_split_type");
  check_mpi(MPI_Comm_rank(host, &rank.local), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(host, &rank.local_count), "MPI_Comm_size");
  check_mpi(MPI_Comm_free(&host), "MPI_Comm_free");
  return rank;
}

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator() : Communicator(rank_in_world()), exceptions_(std::uncaught_exceptions()) {}
  ~MpiCommunicator() override {
    if (std::uncaught_exceptions() == exceptions_) MPI_Finalize();
  }

  void all_reduce_sum(const View& flat) override {
    reduce_scatter_sum(flat);
    all_gather(flat);
  }
  void reduce_scatter_sum(const View& flat) override {
    log()->note("reduce_scatter_sum", flat.elements());
    check(flat.dtype == DType::f32 || flat.dtype == DType::f64, "mpi: sums are of f32 or f64, found {}",
          name_of(flat.dtype));
    if (flat.dtype == DType::f32) return reduce_scatter<float>(flat, MPI_FLOAT);
    reduce_scatter<double>(flat, MPI_DOUBLE);
  }
  void all_gather(const View& flat) override {
    log()->note("all_gather", flat.elements());
    const Parts parts(*this, flat);
    check_mpi(MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, flat.data, parts.counts.data(), parts.begins.data(),
                             type_of(flat), MPI_COMM_WORLD),
              "MPI_Allgatherv");
  }
  void broadcast(const View& flat) override {
    log()->note("broadcast", flat.elements());
    char* data = static_cast<char*>(flat.data);
    const auto bytes = static_cast<int64_t>(flat.bytes());
    for (int64_t begin = 0; begin < bytes; begin += kBroadcastBytes) {
      const auto count = static_cast<int>(std::min(kBroadcastBytes, bytes - begin));
      check_mpi(MPI_Bcast(data + begin, count, MPI_BYTE, 0, MPI_COMM_WORLD), "MPI_Bcast");
    }
  }
  void wait() override {}
  void mark(size_t) override {}
  void wait_for(size_t) override {}
  void gather_bytes(const void* own, size_t bytes, void* all) override {
    log()->note("exchange of values", static_cast<int64_t>(bytes));
    const auto count = static_cast<int>(bytes);
    check_mpi(MPI_Allgather(own, count, MPI_BYTE, all, count, MPI_BYTE, MPI_COMM_WORLD), "MPI_Allgather");
  }

 private:
  // Every rank's part of a flat tensor, as MPI wants it.
  struct Parts {
    Parts(const Communicator& communicator, const View& flat) {
      const int64_t n = flat.elements();
      check(n <= std::numeric_limits<int>::max() - communicator.size(),
            "mpi: {} elements at once; lower parallel.bucket_mb", n);
      for (int rank = 0; rank < communicator.size(); ++rank) {
        begins.push_back(static_cast<int>(communicator.part_begin(n, rank)));
        counts.push_back(static_cast<int>(communicator.part_begin(n, rank + 1)) - begins.back());
      }
    }
    std::vector<int> begins, counts;
  };

  static MPI_Datatype type_of(const View& flat) {
    return size_of(flat.dtype) == 2 ? MPI_UINT16_T : size_of(flat.dtype) == 4 ? MPI_FLOAT : MPI_DOUBLE;
  }

  template <class T>
  void reduce_scatter(const View& flat, MPI_Datatype type) {
    const Parts parts(*this, flat);
    const auto own = static_cast<size_t>(rank().number), ranks = static_cast<size_t>(size());
    const int count = parts.counts[own];
    std::vector<T> received(static_cast<size_t>(count) * ranks);
    const std::vector<int> counts(ranks, count);
    std::vector<int> begins;
    for (size_t rank = 0; rank < ranks; ++rank) begins.push_back(static_cast<int>(rank) * count);
    check_mpi(MPI_Alltoallv(flat.as<T>(), parts.counts.data(), parts.begins.data(), type, received.data(),
                            counts.data(), begins.data(), type, MPI_COMM_WORLD),
              "MPI_Alltoallv");
    T* sum = flat.as<T>() + parts.begins[own];
    for (int i = 0; i < count; ++i) {
      T total = 0;
      for (size_t rank = 0; rank < ranks; ++rank) total += received[rank * static_cast<size_t>(count) + i];
      sum[i] = total;
    }
  }

  int exceptions_;  // in flight when this object was made
};

}  // namespace

std::unique_ptr<Communicator> connect_mpi(int expected) {
  int provided = 0;
  check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  check_mpi(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  auto communicator = std::make_unique<MpiCommunicator>();
  check_usage(communicator->size() == expected,
              "mpi: the launcher started {} processes, MPI joined {}; use OpenMPI's mpirun, or srun --mpi=pmix",
              expected, communicator->size());
  return communicator;
}

}  // namespace egmla

#else

namespace egmla {

std::unique_ptr<Communicator> connect_mpi(int expected) {
  fail_usage(
      "mpi: the launcher started {} processes, but this build has no MPI; install libopenmpi-dev and build again, or "
      "start one process",
      expected);
}

}  // namespace egmla

#endif
