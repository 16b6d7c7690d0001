// The kernels that others call, by their C names; launcher.py says what each does.
#pragma once
#include "simd.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace readapt {

// One module of one adapter in one layer; addresses are of contiguous rank rows. As FACTORS in library.py.
struct Factors {
  const void* a;  // [rank, in]
  const void* b;  // [rank, size]
  int64_t rank, rank_start, out_start, out_size;
  double scale;
};

// Neighbouring tokens of one adapter; `factors` points at its slices of all layers and linears, rank 0 where none is.
struct Segment {
  const Factors* factors;
  int64_t start, stop;
};

// Memory that is read soon, in pieces of CHUNK bytes: a product asks for it while it computes.
constexpr int64_t CHUNK = 2048;
struct Wanted {
  const char* const* chunks;
  int64_t count;
};

}  // namespace readapt

EXPORT void readapt_add_norm_bf16(readapt::bf16* hidden, const readapt::bf16* delta, const readapt::bf16* weight,
                                  readapt::bf16* out, int64_t tokens, int64_t width, float eps);
EXPORT void readapt_silu_mul_bf16(const readapt::bf16* gate_up, readapt::bf16* out, int64_t tokens, int64_t inner);
EXPORT void readapt_rotate_write_bf16(readapt::bf16* qkv, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim,
                                      const readapt::bf16* cos, const readapt::bf16* sin, const int64_t* positions,
                                      const int64_t* page_of, int64_t block, readapt::bf16* pool, int64_t page_stride,
                                      int64_t value_offset, int64_t head_stride, const readapt::bf16* q_norm,
                                      const readapt::bf16* k_norm, float eps);
EXPORT void readapt_attend_bf16(const readapt::bf16* qkv, int64_t row_stride, readapt::bf16* out, const int64_t* tokens,
                                int64_t rows, int64_t heads, int64_t kv_heads, int64_t dim, const readapt::bf16* pool,
                                const int32_t* tables, int64_t table_width, const int64_t* contexts, int64_t page,
                                int64_t value, int64_t head, float scale);
EXPORT void readapt_lora_bf16(const readapt::Segment* segments, int64_t count, int64_t slices, int64_t offset,
                              const readapt::bf16* x, int64_t in, readapt::bf16* y, int64_t out, float* bridge,
                              int64_t width);

namespace readapt {

// y = x W^T + bias, asking for what is wanted meanwhile; see readapt_linear_bf16.
void multiply(const bf16* x, int64_t rows, int64_t k, const uint32_t* w, int64_t n, const bf16* bias, bf16* y,
              Wanted wanted);

}  // namespace readapt
