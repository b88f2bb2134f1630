#include "train/checkpoint_saver.h"

#include <chrono>
#include <utility>

namespace egmla {

void CheckpointSaver::start(std::function<void()> write) {
  wait();
  writing_ = std::async(std::launch::async, std::move(write));
}

void CheckpointSaver::wait() {
  if (writing_.valid()) writing_.get();
}

void CheckpointSaver::raise_failure() {
  if (writing_.valid() && writing_.wait_for(std::chrono::seconds(0)) == std::future_status::ready) writing_.get();
}

}  // namespace egmla
