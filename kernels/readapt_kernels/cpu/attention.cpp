// Decode attention over pages: one query token per sequence, softmax(q K^T / sqrt(dim)) V, a stretch of tokens at a time.
#include <omp.h>

#include <cmath>

#include "kernels.h"

using namespace readapt;

namespace {

constexpr int64_t BLOCK = LANES;    // tokens of a page
constexpr int64_t STRETCH = 128;    // tokens whose weights are kept
constexpr int64_t MOST_HEADS = 32;  // query heads of one task

// Strides in elements. A block of one KV head: keys [dim, 16 tokens], then, `value` further on, values [16 tokens, dim]:
// both products run along lanes, no sum across them.
struct Strides {
  int64_t page, value, head;
};

// Keys and values of a sequence in one layer, from one KV head on.
template <class T> struct Cache {
  const T* pool;
  const int32_t* table;
  int64_t tokens;
  Strides strides;

  const T* keys(int64_t token, int64_t head) const {
    return pool + table[token / BLOCK] * strides.page + head * strides.head;
  }
};

// A part of a step's work: some KV heads of one row, `group` query heads to each.
template <class T> struct Task {
  const T* q;
  T* out;
  int64_t kv_heads, group;
  Cache<T> cache;
};

// Asks for the keys or the values of a block.
template <class T, int DIM> inline void ask(const T* side) {
  for (int64_t i = 0; i < DIM * BLOCK; i += LINE<T>) prefetch(side + i);
}

// scores[n] += q[n] . keys for a block.
template <int DIM, int N, class T> inline void add_keys(const T* q, const T* keys, f32x16 (&scores)[N]) {
  for (int i = 0; i < DIM; ++i) {
    f32x16 key = load(keys + i * BLOCK);
    for (int n = 0; n < N; ++n) scores[n] += splat(get(q[n * DIM + i])) * key;
  }
}

#ifdef __AVX512BF16__
// Two elements at a time. In two sums each: one would wait for itself.
template <int DIM, int N>
inline void add_keys(const bf16* q, const bf16* keys, f32x16 (&scores)[N]) {
  typedef uint16_t u16x32 __attribute__((vector_size(64)));
  constexpr u16x32 PAIRS{0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                         8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  f32x16 sums[2][N];
  for (int n = 0; n < N; ++n) sums[0][n] = scores[n], sums[1][n] = f32x16{};
  for (int first = 0; first < DIM; first += 4)
    for (int s = 0, i = first; s < 2; ++s, i += 2) {
      u16x32 rows;
      std::memcpy(&rows, keys + i * BLOCK, sizeof rows);
      u32x16 key = (u32x16)__builtin_shuffle(rows, PAIRS);
      for (int n = 0; n < N; ++n) {
        uint32_t pair;
        std::memcpy(&pair, q + n * DIM + i, sizeof pair);
        sums[s][n] = dot_pairs(sums[s][n], key, u32x16{} + pair);
      }
    }
  for (int n = 0; n < N; ++n) scores[n] = sums[0][n] + sums[1][n];
}
#endif

// acc[n] += weights[n] . values for the first `count` tokens of a block.
template <int DIM, int N, class T>
inline void add_values(const float* weights, const T* values, int64_t count, f32x16* acc) {
  constexpr int VECTORS = DIM / LANES;
  f32x16 sums[N][VECTORS];
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < VECTORS; ++v) sums[n][v] = acc[n * VECTORS + v];
  for (int64_t t = 0; t < count; ++t) {
    f32x16 value[VECTORS];
    for (int v = 0; v < VECTORS; ++v) value[v] = load(values + t * DIM + v * LANES);
    for (int n = 0; n < N; ++n)
      for (int v = 0; v < VECTORS; ++v) sums[n][v] += splat(weights[n * STRETCH + t]) * value[v];
  }
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < VECTORS; ++v) acc[n * VECTORS + v] = sums[n][v];
}

// What a query head has seen so far.
struct Softmax {
  float largest = -INFINITY, total = 0;

  // Makes weights of `count` scores, in place; what was weighted before is to be multiplied by the result.
  float soften(float* scores, int64_t count, float scale) {
    int64_t stop = (count + LANES - 1) / LANES * LANES;
    for (int64_t i = count; i < stop; ++i) scores[i] = -INFINITY;  // unused slots may hold NaN
    f32x16 top = splat(-INFINITY), sums{};
    for (int64_t i = 0; i < stop; i += LANES) top = load(scores + i) > top ? load(scores + i) : top;
    float before = largest, now = max(top) * scale;
    largest = now > before ? now : before;
    for (int64_t i = 0; i < stop; i += LANES) {
      f32x16 weight = exp(load(scores + i) * splat(scale) - splat(largest));
      store(scores + i, weight);
      sums += weight;
    }
    float shrink = exp(splat(before - largest))[0];
    total = total * shrink + sum(sums);
    return shrink;
  }
};

// One task, stretch by stretch. While keys pass by, values are asked for; while those do, the next stretch's keys, or
// the next task's.
template <class T, int DIM> class Attention {
 public:
  Attention(const Task<T>& task, const Cache<T>& next, float scale) : task(task), next(next), scale(scale) {}

  void run() {
    const Cache<T>& cache = task.cache;
    int64_t heads = task.kv_heads * task.group;
    for (int64_t h = 0; h < heads; ++h)
      for (int v = 0; v < VECTORS; ++v) acc[h][v] = f32x16{};
    for (int64_t start = 0; start < cache.tokens; start += STRETCH) {
      int64_t count = cache.tokens - start < STRETCH ? cache.tokens - start : STRETCH;
      for (int64_t t = 0; t < count; t += BLOCK) score(start, t);
      for (int64_t h = 0; h < heads; ++h) {
        f32x16 shrink = splat(softmax[h].soften(weights[h], count, scale));
        for (int v = 0; v < VECTORS; ++v) acc[h][v] *= shrink;
      }
      for (int64_t t = 0; t < count; t += BLOCK) mix(start, t, count - t < BLOCK ? count - t : BLOCK);
    }
    for (int64_t h = 0; h < heads; ++h)
      for (int v = 0; v < VECTORS; ++v) store(task.out + h * DIM + v * LANES, acc[h][v] / splat(softmax[h].total));
  }

 private:
  static constexpr int VECTORS = DIM / LANES, FITTING = 24 / VECTORS, TOGETHER = FITTING > 4 ? 4 : FITTING;

  // All heads' scores of the block at `start` + t.
  void score(int64_t start, int64_t t) {
    for (int64_t h = 0; h < task.kv_heads; ++h) {
      const T* keys = task.cache.keys(start + t, h);
      ask<T, DIM>(keys + task.cache.strides.value);
      in_parts<TOGETHER>(h * task.group, (h + 1) * task.group, [&](int64_t head, auto together) {
        constexpr int N = decltype(together)::value;
        f32x16 scores[N];
        for (int n = 0; n < N; ++n) scores[n] = f32x16{};
        add_keys<DIM, N>(task.q + head * DIM, keys, scores);
        for (int n = 0; n < N; ++n) store(weights[head + n] + t, scores[n]);
      });
    }
  }

  void mix(int64_t start, int64_t t, int64_t count) {
    bool is_last = start + STRETCH >= task.cache.tokens;
    const Cache<T>& then = is_last ? next : task.cache;
    int64_t later = is_last ? t : start + STRETCH + t;
    for (int64_t h = 0; h < task.kv_heads; ++h) {
      const T* values = task.cache.keys(start + t, h) + task.cache.strides.value;
      if (later < then.tokens) ask<T, DIM>(then.keys(later, h));
      in_parts<TOGETHER>(h * task.group, (h + 1) * task.group, [&](int64_t head, auto together) {
        add_values<DIM, decltype(together)::value>(weights[head] + t, values, count, acc[head]);
      });
    }
  }

  const Task<T>& task;
  const Cache<T>& next;
  float scale;
  alignas(64) float weights[MOST_HEADS][STRETCH];  // scores, then softmax's weights, of a stretch
  f32x16 acc[MOST_HEADS][VECTORS];
  Softmax softmax[MOST_HEADS];
};

template <class T>
void attend(const T* qkv, int64_t row_stride, T* out, const int64_t* tokens, int64_t rows, int64_t heads,
            int64_t kv_heads, int64_t dim, const T* pool, const int32_t* tables, int64_t table_width,
            const int64_t* contexts, Strides strides, float scale) {
  int64_t group = heads / kv_heads, fitting = MOST_HEADS / group;
  int64_t share = rows < omp_get_max_threads() ? 1 : fitting < kv_heads ? fitting : kv_heads;
  int64_t parts = (kv_heads + share - 1) / share, tasks = rows * parts;
  auto task_at = [&](int64_t index) {
    int64_t row = index / parts, h = index % parts * share, left = kv_heads - h;
    Cache<T> cache{pool + h * strides.head, tables + row * table_width, contexts[row], strides};
    return Task<T>{qkv + tokens[row] * row_stride + h * group * dim, out + (tokens[row] * heads + h * group) * dim,
                   left < share ? left : share, group, cache};
  };
#pragma omp parallel for schedule(dynamic) if (tasks > 1)
  for (int64_t index = 0; index < tasks; ++index) {
    Task<T> task = task_at(index);
    Cache<T> next = index + 1 < tasks ? task_at(index + 1).cache : Cache<T>{pool, tables, 0, strides};
    switch (dim) {
      case 16: Attention<T, 16>(task, next, scale).run(); break;
      case 32: Attention<T, 32>(task, next, scale).run(); break;
      case 64: Attention<T, 64>(task, next, scale).run(); break;
      case 80: Attention<T, 80>(task, next, scale).run(); break;
      case 96: Attention<T, 96>(task, next, scale).run(); break;
      case 128: Attention<T, 128>(task, next, scale).run(); break;
      case 256: Attention<T, 256>(task, next, scale).run(); break;
    }
  }
}

}  // namespace

#define DEFINE(T, NAME)                                                                                               \
  EXPORT void readapt_attend_##NAME(const T* qkv, int64_t row_stride, T* out, const int64_t* tokens, int64_t rows,    \
                                    int64_t heads, int64_t kv_heads, int64_t dim, const T* pool,                      \
                                    const int32_t* tables, int64_t table_width, const int64_t* contexts,              \
                                    int64_t page, int64_t value, int64_t head, float scale) {                         \
    attend(qkv, row_stride, out, tokens, rows, heads, kv_heads, dim, pool, tables, table_width, contexts,             \
           Strides{page, value, head}, scale);                                                                        \
  }
DEFINE(float, f32)
DEFINE(bf16, bf16)
