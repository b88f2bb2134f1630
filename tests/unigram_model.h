// A checkpoint whose model gives every token a fixed probability whatever stands before it, so that what it says of a
// text can be computed by hand. Its tokens are the bytes, " a", and the end of text.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "text/tokenizer.h"

namespace egmla::test {

constexpr int32_t kSpaceA = 256;     // " a"
constexpr int32_t kEnd = 257;        // <|endoftext|>
constexpr int64_t kUnigrams = 258;   // tokens
constexpr int64_t kPositions = 512;  // of the model

// Weights by id, 1 where none is given; the probability of a token is its share of all.
using Weights = std::map<int32_t, double>;
// P(" a") = 0.743, of every other token 0.001.
inline Weights thousand() {
  return {{kSpaceA, 743.0}};
}

Tokenizer unigram_tokenizer();
void write_unigram_model(const std::string& path, const Weights& weights);

}  // namespace egmla::test
