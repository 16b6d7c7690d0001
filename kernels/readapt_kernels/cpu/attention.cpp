// Decode attention over pages: one query token per sequence, softmax(q K^T / sqrt(dim)) V, block after block.
#include <cmath>

#include "simd.h"

using namespace readapt;

namespace {

constexpr int64_t MAX_GROUP = 16;
constexpr int HEADS = 3;

// Strides in elements. A block of one KV head: keys [dim, 16 tokens], then, `value` further on, values [16 tokens, dim]:
// both products run along lanes, no sum across them.
struct Strides {
  int64_t page, value;
};

// Query heads that share a KV head, for one sequence.
template <class T, int DIM>
void attend_group(const T* q, T* out, int64_t group, const T* pool, const int32_t* table, int64_t context,
                  Strides strides, float scale) {
  constexpr int VECTORS = DIM / LANES;
  float queries[MAX_GROUP][DIM];
  f32x16 acc[MAX_GROUP][VECTORS], lanes;
  float largest[MAX_GROUP], total[MAX_GROUP];
  for (int i = 0; i < LANES; ++i) lanes[i] = float(i);
  for (int64_t g = 0; g < group; ++g) {
    largest[g] = -INFINITY;
    total[g] = 0;
    for (int i = 0; i < DIM; ++i) queries[g][i] = get(q[g * DIM + i]) * scale;
    for (int v = 0; v < VECTORS; ++v) acc[g][v] = f32x16{};
  }
  for (int64_t start = 0; start < context; start += LANES) {
    const T* keys = pool + table[start / LANES] * strides.page;
    const T* values = keys + strides.value;
    int64_t count = context - start < LANES ? context - start : LANES;
    float weights[MAX_GROUP][LANES];
    // Three heads at a time: their sums stay in registers while a block of keys goes by.
    for (int64_t g = 0; g < group; g += HEADS) {
      f32x16 scores[HEADS]{};
      int64_t n = group - g < HEADS ? group - g : HEADS;
      if (n == HEADS) {
        for (int i = 0; i < DIM; ++i) {
          f32x16 key = load(keys + i * LANES);
          for (int h = 0; h < HEADS; ++h) scores[h] += splat(queries[g + h][i]) * key;
        }
      } else {
        for (int h = 0; h < n; ++h)
          for (int i = 0; i < DIM; ++i) scores[h] += splat(queries[g + h][i]) * load(keys + i * LANES);
      }
      for (int h = 0; h < n; ++h) {
        f32x16 seen = lanes < float(count) ? scores[h] : splat(-INFINITY);  // selected: unused slots may hold NaN
        float top = max(seen) > largest[g + h] ? max(seen) : largest[g + h];
        f32x16 weight = exp(seen - splat(top));
        float shrink = std::exp(largest[g + h] - top);
        total[g + h] = total[g + h] * shrink + sum(weight);
        largest[g + h] = top;
        store(weights[g + h], weight);
        if (shrink != 1.0f)
          for (int v = 0; v < VECTORS; ++v) acc[g + h][v] *= splat(shrink);
      }
    }
    for (int64_t t = 0; t < count; ++t) {
      f32x16 value[VECTORS];
      for (int v = 0; v < VECTORS; ++v) value[v] = load(values + t * DIM + v * LANES);
      for (int64_t g = 0; g < group; ++g)
        for (int v = 0; v < VECTORS; ++v) acc[g][v] += splat(weights[g][t]) * value[v];
    }
  }
  for (int64_t g = 0; g < group; ++g)
    for (int v = 0; v < VECTORS; ++v) store(out + g * DIM + v * LANES, acc[g][v] / splat(total[g]));
}

template <class T>
void attend(const T* qkv, int64_t row_stride, T* out, const int64_t* tokens, int64_t rows, int64_t heads,
            int64_t kv_heads, int64_t dim, const T* pool, const int32_t* tables, int64_t table_width,
            const int64_t* contexts, int64_t page, int64_t value, int64_t head,
            float scale) {
  int64_t group = heads / kv_heads;
  Strides strides{page, value};
#pragma omp parallel for schedule(dynamic) if (rows * kv_heads > 1)
  for (int64_t task = 0; task < rows * kv_heads; ++task) {
    int64_t row = task / kv_heads, h = task % kv_heads;
    const T* q = qkv + tokens[row] * row_stride + h * group * dim;
    T* o = out + tokens[row] * heads * dim + h * group * dim;
    const T* base = pool + h * head;
    const int32_t* table = tables + row * table_width;
#define CASE(DIM) \
  case DIM:       \
    attend_group<T, DIM>(q, o, group, base, table, contexts[row], strides, scale); break
    switch (dim) {
      CASE(16);
      CASE(32);
      CASE(64);
      CASE(80);
      CASE(96);
      CASE(128);
      CASE(256);
    }
#undef CASE
  }
}

}  // namespace

#define DEFINE(T, NAME)                                                                                             \
  extern "C" __attribute__((visibility("default"))) void readapt_attend_##NAME(const T* qkv, int64_t row_stride, T* out, const int64_t* tokens,            \
                                        int64_t rows, int64_t heads, int64_t kv_heads, int64_t dim, const T* pool,  \
                                        const int32_t* tables, int64_t table_width, const int64_t* contexts,        \
                                        int64_t page, int64_t value, int64_t head,                                  \
                                        float scale) {                                                              \
    attend(qkv, row_stride, out, tokens, rows, heads, kv_heads, dim, pool, tables, table_width, contexts, page,     \
           value, head, scale);                                                                        \
  }
DEFINE(float, f32)
DEFINE(bf16, bf16)
