// Products with bfloat16 weights, y = x W^T + bias: sums in float32, each output's in the order of k, so that a row's
// result does not depend on its companions or on threads.
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "kernels.h"

using namespace readapt;

namespace {

// W lies as [panel][pair of k][64 outputs][2 of k], which is oneDNN's BA16a64b2a; k is padded with zeros to a multiple
// of 32, the last panel with outputs that nobody reads.
constexpr int PANEL = 64;
constexpr int64_t K_STEP = 32;
constexpr int64_t STEP = 8;  // pairs of k
constexpr int64_t CHUNK_LINES = CHUNK / 64;

// A tile's sums stay in registers: ACCUMULATORS of them, rows times vectors of a panel.
#if defined(__AVX512F__)
constexpr int WIDTH = 16, ROWS = 6, ACCUMULATORS = 24;
#elif defined(__AVX__)
constexpr int WIDTH = 8, ROWS = 4, ACCUMULATORS = 8;
#else
constexpr int WIDTH = 4, ROWS = 4, ACCUMULATORS = 8;
#endif
typedef float floats __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t words __attribute__((vector_size(4 * WIDTH)));

// acc + w.low * x.low + w.high * x.high, the two bfloat16 of each word.
inline floats dot_pair(floats acc, words w, uint32_t x) {
#ifdef __AVX512BF16__
  return (floats)_mm512_dpbf16_ps((__m512)acc, (__m512bh)w, (__m512bh)_mm512_set1_epi32(int32_t(x)));
#else
  words low = w << 16, high = w & 0xffff0000u, first = words{} + (x << 16), second = words{} + (x & 0xffff0000u);
  acc += (floats)low * (floats)first;
  acc += (floats)high * (floats)second;
  return acc;
#endif
}

// Adds what one pair of k contributes; rows of x are `stride` apart. Sums must stay in registers: no address of theirs
// is taken, and w is read vector by vector.
template <int N, int VECTORS>
inline __attribute__((always_inline)) void add_pair(floats (&acc)[N][VECTORS], const uint32_t* w, const bf16* x,
                                                    int64_t stride) {
  words weights[VECTORS];
  for (int v = 0; v < VECTORS; ++v) std::memcpy(&weights[v], w + v * WIDTH, sizeof weights[v]);
  for (int n = 0; n < N; ++n) {
    uint32_t pair;
    std::memcpy(&pair, x + n * stride, sizeof pair);
    for (int v = 0; v < VECTORS; ++v) acc[n][v] = dot_pair(acc[n][v], weights[v], pair);
  }
}

// What one tile asks for, a few lines with each STEP of its pairs.
struct Ahead {
  const char* const* chunks;
  int64_t lines;

  void ask(int64_t step, int64_t steps) const {
    for (int64_t i = lines * step / steps; i < lines * (step + 1) / steps; ++i)
      prefetch(chunks[i / CHUNK_LINES] + i % CHUNK_LINES * 64);
  }
};

// sums[N][PANEL] of N rows of x [N, k] with one panel.
template <int N, bool ASKS>
void tile(const bf16* x, int64_t k, const uint32_t* panel, float (*sums)[PANEL], Ahead ahead) {
  constexpr int MOST = ACCUMULATORS / N * WIDTH, COLUMNS = MOST < PANEL ? MOST : PANEL, VECTORS = COLUMNS / WIDTH;
  static_assert(PANEL % COLUMNS == 0, "a panel is a whole number of tiles");
  for (int start = 0; start < PANEL; start += COLUMNS) {
    floats acc[N][VECTORS];
    for (int n = 0; n < N; ++n)
      for (int v = 0; v < VECTORS; ++v) acc[n][v] = floats{};
    for (int64_t pair = 0; pair < k / 2; ++pair) {
      if (ASKS && pair % STEP == 0) ahead.ask(pair / STEP, (k / 2 + STEP - 1) / STEP);
      add_pair(acc, panel + pair * PANEL + start, x + 2 * pair, k);
    }
    if (k % 2) {
      bf16 last[N][2]{};
      for (int n = 0; n < N; ++n) last[n][0] = x[n * k + k - 1];
      add_pair(acc, panel + k / 2 * PANEL + start, last[0], 2);
    }
    for (int n = 0; n < N; ++n)
      for (int v = 0; v < VECTORS; ++v) {
        floats sum = acc[n][v];
        std::memcpy(sums[n] + start + v * WIDTH, &sum, sizeof sum);
      }
  }
}

using Tile = void (*)(const bf16*, int64_t, const uint32_t*, float (*)[PANEL], Ahead);
#if defined(__AVX512F__)
#define TILES_OF(ASKS) {tile<1, ASKS>, tile<2, ASKS>, tile<3, ASKS>, tile<4, ASKS>, tile<5, ASKS>, tile<6, ASKS>}
#else
#define TILES_OF(ASKS) {tile<1, ASKS>, tile<2, ASKS>, tile<3, ASKS>, tile<4, ASKS>}
#endif
constexpr Tile TILES[2][ROWS] = {TILES_OF(false), TILES_OF(true)};

void finish(const float* sums, const bf16* bias, bf16* y, int64_t columns) {
  int64_t i = 0;
  for (; i + LANES <= columns; i += LANES)
    store(y + i, bias ? load(sums + i) + load(bias + i) : load(sums + i));
  for (; i < columns; ++i) put(y + i, bias ? sums[i] + get(bias[i]) : sums[i]);
}

}  // namespace

void readapt::multiply(const bf16* x, int64_t rows, int64_t k, const uint32_t* w, int64_t n, const bf16* bias, bf16* y,
                       Wanted wanted) {
  int64_t panels = (n + PANEL - 1) / PANEL, tiles = (rows + ROWS - 1) / ROWS, tasks = panels * tiles;
  int64_t stride = (k + K_STEP - 1) / K_STEP * (K_STEP / 2) * PANEL;
  bool asks = wanted.count && tiles > 1;  // with one tile memory is the limit already
  // All rows pass by a panel while it is in the cache.
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t panel = 0; panel < panels; ++panel)
    for (int64_t t = 0; t < tiles; ++t) {
      int64_t first = rows * t / tiles, last = rows * (t + 1) / tiles, at = panel * PANEL;
      int64_t task = panel * tiles + t, chunk = wanted.count * task / tasks, end = wanted.count * (task + 1) / tasks;
      float sums[ROWS][PANEL];
      TILES[asks][last - first - 1](x + first * k, k, w + panel * stride, sums,
                                    {wanted.chunks + chunk, (end - chunk) * CHUNK_LINES});
      for (int64_t r = first; r < last; ++r)
        finish(sums[r - first], bias ? bias + at : nullptr, y + r * n + at, n - at < PANEL ? n - at : PANEL);
    }
}

EXPORT void readapt_linear_bf16(const bf16* x, int64_t rows, int64_t k, const uint32_t* w, int64_t n, const bf16* bias,
                                bf16* y) {
  multiply(x, rows, k, w, n, bias, y, Wanted{nullptr, 0});
}
