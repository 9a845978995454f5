// Products of families `amx-bf16` and `int8` over a tile unit, `Tiles`, with the vector code beside
// it, `Vectors`, both of the including file. See tile_gemm.h and tile_layout.h.
//
// Few rows: one tile of rows, and six panels read at once, each a stream of its own. More rows: two
// tiles of rows by two panels, over stretches of K that stay in the first two levels of cache; C is
// stored between stretches and continued.
//
// Tile registers: C in front (row tile · panels + panel), then one per row tile for A, then B.
#pragma once

#include "kernels/cpu/amx_kernels.h"
#include "kernels/cpu/drive_inl.h"
#include "kernels/cpu/int8_layout.h"
#include "kernels/cpu/tile_layout.h"

namespace epic::kernels {
namespace {

constexpr int kTileRows = 16;      // of a tile register (hardware)
constexpr int kBounceTiles = 8;    // as many as there are tile registers
constexpr int kDecodedTiles = 32;  // two panels by a stretch of 16, or six by 4
static_assert(kAmxScratchBytes == (kBounceTiles + kDecodedTiles) * kBf16TileBytes);
// This is more than any K has, and no sum with it overflows.
constexpr int64_t kAllTiles = int64_t{1} << 40;
// How far ahead weights are fetched. Chosen, not measured apart: tests/perf/RESULTS_AMX.md has the
// speed of the whole.
constexpr int64_t kAheadBytes = 4096;

// kStretch*: tiles of K between two stores of C. 16 tiles of two panels are 32 KiB of weights,
// which stay in the first two levels of cache while rows pass over them; FP8 must stop where a
// scale ends.
struct BF16Weight {
  static constexpr bool kInt8 = false, kDecoded = false, kScaled = false;
  static constexpr int64_t kTileBytes = kBf16TileBytes;
  static constexpr int64_t kStretchOfFewRows = kAllTiles, kStretch = 16;
};
struct E4M3Weight {
  static constexpr bool kInt8 = false, kDecoded = true, kScaled = true;
  static constexpr int64_t kTileBytes = kCodeTileBytes;
  static constexpr int64_t kStretchOfFewRows = kTilesPerScale, kStretch = kTilesPerScale;
  // Tile t of a panel.
  template <class Vectors>
  static void Decode(const std::byte* panel, int64_t t, std::byte* tile) {
    Vectors::DecodeE4M3(panel + t * kTileBytes, tile);
  }
};
struct NibbleWeight {
  static constexpr bool kInt8 = false, kDecoded = true, kScaled = false;
  static constexpr int64_t kTileBytes = kInt4GroupBytes;
  static constexpr int64_t kStretchOfFewRows = 4, kStretch = 16;
  template <class Vectors>
  static void Decode(const std::byte* panel, int64_t t, std::byte* tile) {
    Vectors::DecodeInt4(panel + Int4ScalesAt(t), panel + Int4LinesAt(t), tile);
  }
};
struct Int8Weight {
  static constexpr bool kInt8 = true, kDecoded = false, kScaled = false;
  static constexpr int64_t kTileBytes = kInt8TileBytes;
  static constexpr int64_t kStretchOfFewRows = kAllTiles, kStretch = 16;
};

template <class Tiles, class Vectors, class Weight, int kRowTiles, int kPanels>
class Sweep {
 public:
  explicit Sweep(const GemmArguments& g)
      : g_(g),
        k_tiles_(Weight::kInt8 ? Int8Tiles(g.weight.k) : Bf16Tiles(g.weight.k)),
        row_bytes_(g.prepared_stride),
        panel_bytes_(Weight::kInt8 ? Int8PanelBytes(g.weight.k)
                                   : TilePanelBytes(g.weight.k, g.weight.dtype)),
        header_bytes_(Weight::kInt8 ? kInt8HeaderBytes
                                    : TileHeaderBytes(g.weight.k, g.weight.dtype)),
        bounce_(g.scratch),
        decoded_(g.scratch + kBounceTiles * kBf16TileBytes) {}

  void Run() {
    // Few rows: weights are read once and not again, so a panel's whole K is one outer stretch, and
    // panels far apart are read side by side. Many rows: an outer stretch of K at a time through
    // all panels, so that the rows' values of that stretch stay near too.
    constexpr bool kFewRows = kRowTiles == 1;
    constexpr int64_t kStretch = kFewRows ? Weight::kStretchOfFewRows : Weight::kStretch;
    constexpr int64_t kOuter = kFewRows ? kAllTiles : 16;
    for (int64_t outer = 0; outer < k_tiles_; outer += kOuter) {
      const int64_t outer_end = Smaller(outer + kOuter, k_tiles_);
      const int64_t begin = g_.n_begin / kTilePanel;
      const int64_t end = (g_.n_end + kTilePanel - 1) / kTilePanel;
      const int64_t apart = (end - begin) / kPanels;
      for (int64_t i = 0; i <= apart; ++i) {
        Group group;
        // The last round has the panels that no full group took; they stand together.
        group.count = i < apart ? kPanels : static_cast<int>(end - begin - apart * kPanels);
        // Panel p of each group is in its own stretch of panels, so that each stream of weights is
        // read from end to end.
        for (int p = 0; p < group.count; ++p) {
          group.panel[p] = i < apart ? begin + i + p * apart : begin + apart * kPanels + p;
        }
        if (group.count == 0) break;
        for (int64_t t = outer; t < outer_end; t += kStretch) {
          Stretch(group, t, Smaller(t + kStretch, outer_end));
        }
      }
    }
    // Tiles are released once, at the end: a thread keeps its configuration from panel to panel.
    tiles_.Release();
  }

 private:
  static constexpr int kFirstA = kRowTiles * kPanels;
  static constexpr int kFirstB = kFirstA + kRowTiles;
  // B gets the registers that C and A leave.
  static constexpr int kBTiles = 8 - kFirstB;

  // Panels that are multiplied side by side.
  struct Group {
    int64_t panel[kPanels];
    int count;
  };
  // A tile of C.
  struct Place {
    float* c;
    int rows;
    int columns;
    std::byte* bounce;  // [16][16] values of this tile, where C itself cannot be addressed
  };

  static int64_t Smaller(int64_t a, int64_t b) { return a < b ? a : b; }

  const std::byte* Packed(int64_t panel) const {
    return g_.weight.data + panel * panel_bytes_ + header_bytes_;
  }
  // The scales at a panel's start: of FP8 one for each block, of INT8 one for each output.
  const float* Scales(int64_t panel) const {
    return reinterpret_cast<const float*>(g_.weight.data + panel * panel_bytes_);
  }

  // All rows by the tiles [t_begin, t_end) of K of a group.
  void Stretch(const Group& group, int64_t t_begin, int64_t t_end) {
    const std::byte* b[kPanels] = {};
    for (int p = 0; p < group.count; ++p) {
      const std::byte* packed = Packed(group.panel[p]);
      b[p] = packed + t_begin * Weight::kTileBytes;
      // A stretch is decoded once for all rows: its tiles stay in cache while rows pass over them.
      if constexpr (Weight::kDecoded) b[p] = Decoded(p, packed, t_begin, t_end);
    }
    for (int64_t row = 0; row < g_.m; row += kRowTiles * kTileRows) {
      int rows[kRowTiles];
      for (int r = 0; r < kRowTiles; ++r) {
        const int64_t left = g_.m - row - r * kTileRows;
        rows[r] = static_cast<int>(left < 0 ? 0 : Smaller(left, kTileRows));
      }
      Configure(rows);
      Begin(group, row, rows, t_begin);
      Multiply(group, b, g_.prepared + row * row_bytes_ + 64 * t_begin, rows, t_end - t_begin,
               row == 0);
      End(group, row, rows, t_begin, t_end);
    }
  }

  const std::byte* Decoded(int p, const std::byte* packed, int64_t t_begin, int64_t t_end) {
    // The scratch holds 32 tiles: with six panels four of each, with two sixteen.
    std::byte* to = decoded_ + p * Smaller(Weight::kStretch, kPanels > 2 ? 4 : 16) * kBf16TileBytes;
    for (int64_t t = t_begin; t < t_end; ++t) {
      for (int64_t at = 0; at < Weight::kTileBytes; at += 64) {
        Vectors::Prefetch(packed + t * Weight::kTileBytes + kAheadBytes + at);
      }
      if constexpr (Weight::kDecoded) {
        Weight::template Decode<Vectors>(packed, t, to + (t - t_begin) * kBf16TileBytes);
      }
    }
    return to;
  }

  // Configuring clears every tile register and waits for those in use, so it happens only when the
  // rows change.
  void Configure(const int (&rows)[kRowTiles]) {
    // Rows change only at the last pass over a stretch, and back at the next stretch's first.
    bool same = true;
    for (int r = 0; r < kRowTiles; ++r) same = same && rows[r] == configured_[r];
    if (same) return;
    int of_tile[8];
    for (int& tile_rows : of_tile) tile_rows = kTileRows;
    for (int r = 0; r < kRowTiles; ++r) {
      configured_[r] = rows[r];
      if (rows[r] == 0) continue;  // its tiles are not used
      for (int p = 0; p < kPanels; ++p) of_tile[r * kPanels + p] = rows[r];
      of_tile[kFirstA + r] = rows[r];
    }
    tiles_.Configure(of_tile);
  }

  // body(Index, place) for the tiles of C that are in use.
  template <class Body>
  [[gnu::always_inline]] void ForPlaces(const Group& group, int64_t row,
                                        const int (&rows)[kRowTiles], const Body& body) {
    Repeat<kRowTiles * kPanels>([&](auto tile) {
      constexpr int kTile = decltype(tile)::value;
      constexpr int kRow = kTile / kPanels;
      constexpr int kPanel = kTile % kPanels;
      if (kPanel >= group.count || rows[kRow] == 0) return;
      const int64_t n = group.panel[kPanel] * kTilePanel;
      body(tile, kPanel,
           Place{g_.c + (row + kRow * kTileRows) * g_.c_stride + n - g_.n_begin, rows[kRow],
                 static_cast<int>(Smaller(kTilePanel, g_.n_end - n)),
                 bounce_ + kTile * kBf16TileBytes});
    });
  }

  void Begin(const Group& group, int64_t row, const int (&rows)[kRowTiles], int64_t t_begin) {
    ForPlaces(group, row, rows, [&](auto tile, int, const Place& place) {
      constexpr int kTile = decltype(tile)::value;
      // A scale's sum starts from 0 and is added to C by AddScaled. All other sums continue in C,
      // so that the tree of a row is one, however K is cut.
      if (Weight::kScaled || t_begin == 0) {
        tiles_.template Zero<kTile>();
      } else if (place.columns == kTilePanel) {
        tiles_.template Load<kTile>(place.c, 4 * g_.c_stride);
      } else {
        for (int r = 0; r < place.rows; ++r) {
          __builtin_memcpy(place.bounce + r * 64, place.c + r * g_.c_stride, 4 * place.columns);
        }
        tiles_.template Load<kTile>(place.bounce, 64);
      }
    });
  }

  [[gnu::always_inline]] void Multiply(const Group& group, const std::byte* const (&b)[kPanels],
                                       const std::byte* a, const int (&rows)[kRowTiles],
                                       int64_t count, bool first_rows) {
    // The first rows bring the weights from memory, and later rows find them in cache. Types that
    // are decoded were fetched ahead when they were decoded.
    const bool ahead = first_rows && !Weight::kDecoded;
    for (int64_t t = 0; t < count; ++t) {
      Repeat<kRowTiles>([&](auto r) {
        constexpr int kRow = decltype(r)::value;
        if (rows[kRow] == 0) return;
        // A's rows may be fewer than 16: the register is configured for them, and no row past the
        // last is read.
        tiles_.template Load<kFirstA + kRow>(a + kRow * kTileRows * row_bytes_ + 64 * t,
                                             row_bytes_);
      });
      Repeat<kPanels>([&](auto p) {
        constexpr int kPanel = decltype(p)::value;
        // B goes round the registers that are left, so that a load need not wait for the product
        // before it.
        constexpr int kB = kFirstB + kPanel % kBTiles;
        if (kPanel >= group.count) return;
        const std::byte* from = b[kPanel] + t * kBf16TileBytes;
        tiles_.template Load<kB>(from, 64);
        if (ahead) {
          for (int64_t at = 0; at < kBf16TileBytes; at += 64) {
            Vectors::Prefetch(from + kAheadBytes + at);
          }
        }
        Repeat<kRowTiles>([&](auto r) {
          constexpr int kRow = decltype(r)::value;
          if (rows[kRow] == 0) return;
          if constexpr (Weight::kInt8) {
            tiles_.template DotInt8<kRow * kPanels + kPanel, kFirstA + kRow, kB>();
          } else {
            tiles_.template DotBF16<kRow * kPanels + kPanel, kFirstA + kRow, kB>();
          }
        });
      });
    }
  }

  void End(const Group& group, int64_t row, const int (&rows)[kRowTiles], int64_t t_begin,
           int64_t t_end) {
    ForPlaces(group, row, rows, [&](auto tile, int p, const Place& place) {
      constexpr int kTile = decltype(tile)::value;
      // FP8 sums are finished at every block, INT8 sums once, after all of K; other sums are C
      // itself.
      const bool finish = Weight::kScaled || (Weight::kInt8 && t_end == k_tiles_);
      if (!finish && place.columns == kTilePanel) {
        tiles_.template Store<kTile>(place.c, 4 * g_.c_stride);
        return;
      }
      // A tile stores whole rows of 16: columns past the matrix must not reach C.
      tiles_.template Store<kTile>(place.bounce, 64);
      if constexpr (Weight::kScaled) {
        // A stretch of FP8 is one block (kStretch), so its first tile names the scale.
        const float scale = Scales(group.panel[p])[t_begin / kTilesPerScale];
        Vectors::AddScaled(place.bounce, scale, t_begin == 0, place.rows, place.columns, place.c,
                           g_.c_stride);
      } else if (finish) {
        // A row's scale stands behind its values (Int8Row).
        const std::byte* first_row = g_.prepared + (row + kTile / kPanels * kTileRows) * row_bytes_;
        Vectors::FinishInt8(place.bounce, Scales(group.panel[p]),
                            first_row + Int8RowOffset(g_.weight.k), row_bytes_, place.rows,
                            place.columns, place.c, g_.c_stride);
      } else {
        for (int r = 0; r < place.rows; ++r) {
          __builtin_memcpy(place.c + r * g_.c_stride, place.bounce + r * 64, 4 * place.columns);
        }
      }
    });
  }

  const GemmArguments& g_;
  const int64_t k_tiles_;
  const int64_t row_bytes_;
  const int64_t panel_bytes_;
  const int64_t header_bytes_;
  std::byte* const bounce_;
  std::byte* const decoded_;
  // The rows of the current configuration; 0 means none yet, as the first tile of a pass has at
  // least one row.
  int configured_[kRowTiles] = {};
  Tiles tiles_;
};

// Eight tile registers: one tile of rows leaves six for C beside A and B; two by two take 4 for C,
// 2 for A and 2 for B, and each loaded tile serves two products.
template <class Tiles, class Vectors, class Weight>
void MultiplyBy(const GemmArguments& g) {
  if (g.m <= kTileRows) {
    Sweep<Tiles, Vectors, Weight, 1, 6>(g).Run();
  } else {
    Sweep<Tiles, Vectors, Weight, 2, 2>(g).Run();
  }
}

template <class Tiles, class Vectors>
void Gemm(const GemmArguments& g) {
  switch (g.weight.dtype) {
    case DType::kF8E4M3:
      return MultiplyBy<Tiles, Vectors, E4M3Weight>(g);
    case DType::kI4:
      return MultiplyBy<Tiles, Vectors, NibbleWeight>(g);
    default:
      return MultiplyBy<Tiles, Vectors, BF16Weight>(g);
  }
}

template <class Tiles, class Vectors>
void GemmInt8(const GemmArguments& g) {
  MultiplyBy<Tiles, Vectors, Int8Weight>(g);
}

}  // namespace
}  // namespace epic::kernels
