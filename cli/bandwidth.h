// What memory delivers to several threads at once.
#pragma once

#include <cstdint>

namespace epic::cli {

// Bytes a second that `threads` threads read from a buffer of about `bytes`, each its share in
// concurrent streams, as the products of one row do: the best of several passes with each of
// several numbers of streams, so that it is a ceiling. 0 if there is no such memory.
double MemoryBandwidth(int threads, int64_t bytes);

}  // namespace epic::cli
