// What memory delivers to several threads at once.
#pragma once

#include <cstdint>

namespace epic::cli {

// Returns how many bytes a second `threads` threads read from a buffer of about `bytes`. Each reads
// its share in concurrent streams, as the products of one row do. The best of several passes with
// each of several numbers of streams counts, so the result is a ceiling. It is 0 if there is no
// such memory.
double MemoryBandwidth(int threads, int64_t bytes);

}  // namespace epic::cli
