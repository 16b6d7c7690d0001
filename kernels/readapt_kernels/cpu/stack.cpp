// All layers of a decoder in one call, for a step whose rows all decode. Composed of the other sources' kernels, so it
// gives bit for bit what calling them one by one gives.
#include <ctime>

#include "kernels.h"

using namespace readapt;

// As PRODUCT, LAYER, MODEL and STEP in stack.py: every field has eight bytes, addresses are null where there is nothing.
struct Product {
  const uint32_t* weight;  // panels
  const bf16* bias;
  int64_t inputs, outputs, slices;
};

struct Layer {
  const bf16 *input_norm, *post_attention_norm, *q_norm, *k_norm, *cos, *sin;
  bf16* pages;
  Product qkv, o, gate_up, down;
};

struct Model {
  const Layer* layers;
  const bf16* norm;
  int64_t count, hidden, heads, kv_heads, dim, block, page_stride;
  double eps, scale;
};

struct Step {
  bf16* hidden;  // [tokens, hidden]: in, the embedded tokens
  bf16 *x, *qkv, *mixed, *delta, *gate_up, *inner;  // workspace; x is what the head takes in the end
  const int64_t *rows, *positions, *pages, *contexts;  // [tokens]
  const int32_t* tables;                               // [tokens, table_width]
  const Segment* segments;
  float* bridge;
  double* spent;  // milliseconds by Item, added to; may be null
  int64_t tokens, table_width, segment_count, bridge_width;
};

namespace {

enum Item { PRODUCTS, LORA, ATTENTION, SMALL };
enum Linear { QKV, O, GATE_UP, DOWN, LINEARS };
constexpr int64_t SLICES = 3;  // in the factors' table, of every linear

// Pieces of what is read soon, as much as may stay in the third level of the cache.
class Pieces {
 public:
  void clear() { count = 0; }
  void add(const void* start, int64_t bytes) {
    for (int64_t at = 0; at < bytes && count < MOST; at += CHUNK) chunks[count++] = static_cast<const char*>(start) + at;
  }
  Wanted wanted() const { return {chunks, count}; }

 private:
  static constexpr int64_t MOST = (8 << 20) / CHUNK;
  const char* chunks[MOST];
  int64_t count = 0;
};

class Run {
 public:
  Run(const Model& model, const Step& step) : m(model), s(step), last(now()) {}

  void all() {
    const bf16* delta = nullptr;
    for (int64_t l = 0; l < m.count; ++l) {
      const Layer& layer = m.layers[l];
      add_norm(delta, layer.input_norm);
      linear(l, QKV, layer.qkv, s.x, s.qkv);
      attend(layer);
      linear(l, O, layer.o, s.mixed, s.delta);
      add_norm(s.delta, layer.post_attention_norm);
      linear(l, GATE_UP, layer.gate_up, s.x, s.gate_up);
      readapt_silu_mul_bf16(s.gate_up, s.inner, s.tokens, layer.down.inputs);
      charge(SMALL);
      linear(l, DOWN, layer.down, s.inner, s.delta);
      delta = s.delta;
    }
    add_norm(delta, m.norm);
  }

 private:
  void add_norm(const bf16* delta, const bf16* weight) {
    readapt_add_norm_bf16(s.hidden, delta, weight, s.x, s.tokens, m.hidden, float(m.eps));
    charge(SMALL);
  }

  // While the product is computed, the factors that come next are asked for, and what the next layer attends to.
  void linear(int64_t l, Linear which, const Product& p, const bf16* x, bf16* y) {
    int64_t offset = (l * LINEARS + which) * SLICES;
    pieces.clear();
    want_factors(offset, p);
    if (which == DOWN && l + 1 < m.count) want_cache(m.layers[l + 1]);
    multiply(x, s.tokens, p.inputs, p.weight, p.outputs, p.bias, y, pieces.wanted());
    charge(PRODUCTS);
    if (!s.segment_count) return;
    readapt_lora_bf16(s.segments, s.segment_count, p.slices, offset, x, p.inputs, y, p.outputs, s.bridge,
                      s.bridge_width);
    charge(LORA);
  }

  void attend(const Layer& layer) {
    int64_t head = m.dim * m.block, value = m.kv_heads * head, width = (m.heads + 2 * m.kv_heads) * m.dim;
    readapt_rotate_write_bf16(s.qkv, s.tokens, m.heads, m.kv_heads, m.dim, layer.cos, layer.sin, s.positions, s.pages,
                              m.block, layer.pages, m.page_stride, value, head, layer.q_norm, layer.k_norm,
                              float(m.eps));
    readapt_attend_bf16(s.qkv, width, s.mixed, s.rows, s.tokens, m.heads, m.kv_heads, m.dim, layer.pages, s.tables,
                        s.table_width, s.contexts, m.page_stride, value, head, float(m.scale));
    charge(ATTENTION);
  }

  void want_factors(int64_t offset, const Product& p) {
    for (int64_t i = 0; i < s.segment_count; ++i)
      for (const Factors* f = s.segments[i].factors + offset; f < s.segments[i].factors + offset + p.slices; ++f) {
        pieces.add(f->a, f->rank * p.inputs * sizeof(bf16));
        pieces.add(f->b, f->rank * f->out_size * sizeof(bf16));
      }
  }

  void want_cache(const Layer& layer) {
    int64_t page_bytes = 2 * m.kv_heads * m.dim * m.block * sizeof(bf16);
    for (int64_t row = 0; row < s.tokens; ++row)
      for (int64_t t = 0; t < s.contexts[row]; t += m.block)
        pieces.add(layer.pages + s.tables[row * s.table_width + t / m.block] * m.page_stride, page_bytes);
  }

  static double now() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
  }
  void charge(Item item) {
    if (!s.spent) return;
    double time = now();
    s.spent[item] += time - last;
    last = time;
  }

  const Model& m;
  const Step& s;
  Pieces pieces;
  double last;
};

}  // namespace

EXPORT void readapt_stack_bf16(const Model* model, const Step* step) { Run(*model, *step).all(); }
