// The C interface of mixq's native kernels: what mixq/kernels/native_library.py calls through ctypes.
//
// Contract: pointers and sizes were checked by the caller. Matrices have the layout of the model folder; activations
// are float32, row by row. A context is used by one thread at a time. No exception leaves these functions; when memory
// runs out they return a null context, or 1.
#pragma once

#include <cstdint>

#include "matrix.h"

#define MIXQ_ABI_VERSION 4
#define MIXQ_EXPORT extern "C" __attribute__((visibility("default")))

// One layer's keys and values.
enum MixqKvKind { MIXQ_KV_BF16 = 0, MIXQ_KV_INT8 = 1, MIXQ_KV_F32 = 2 };

struct MixqKvCache {
    int32_t kind;              // MixqKvKind
    int64_t heads;             // kv heads
    int64_t capacity;          // positions that fit
    int64_t head_dim;          // a multiple of 8, at most 256
    void* keys;                // [heads, capacity, head_dim]
    void* values;              // [heads, capacity, head_dim]
    float* key_scale;          // int8: [heads, capacity]
    float* value_scale;        // int8: [heads, capacity]
};

// One layer. Norms are bfloat16 [D].
struct MixqLayer {
    const void* input_norm;
    const void* post_norm;
    const MixqMatrix* const* qkv;  // [H * C, D], and twice [KV * C, D]
    const MixqMatrix* o;           // [D, H * C]
    const MixqMatrix* gate;        // the router [E, D]; null: a dense model
    const MixqMatrix* experts;     // as mixq_experts takes them; of a dense model one
};

// A whole network.
struct MixqNetwork {
    const void* embedding;  // bfloat16 [V, D]
    const MixqLayer* layers;
    int64_t count;  // of layers
    const void* norm;
    const MixqMatrix* head;  // [V, D]
    const float* cosine;     // [positions, C / 2]
    const float* sine;
    int64_t active;  // experts of each token, at most E
    int64_t window;  // positions that a token sees; 0: all
    float eps;       // of the norms
};

// The next `count` tokens of one sequence, at positions position .. position + count - 1.
struct MixqRows {
    const MixqKvCache* caches;  // of each layer
    int64_t position;
    int64_t count;
};

// How weights are fetched ahead of the products of a few rows.
enum MixqFetchHint {
    MIXQ_FETCH_NONE = 0,
    MIXQ_FETCH_ONCE = 1,   // near the core, marked as read once: they evict nothing from the outer caches
    MIXQ_FETCH_OUTER = 2,  // into the second-level cache
    MIXQ_FETCH_TWICE = 3,  // into the second-level cache, and from there into the first, `near` bytes ahead
};

struct MixqFetch {
    int32_t hint;      // MixqFetchHint
    int32_t rows;      // rows of weights side by side with one row of activations: 1, 2 or 4
    int64_t distance;  // bytes ahead
    int64_t near;      // bytes ahead of the second fetch
};

struct MixqContext;

MIXQ_EXPORT int mixq_abi_version();
MIXQ_EXPORT const char* mixq_compiler();
MIXQ_EXPORT int mixq_best_isa();
MIXQ_EXPORT int mixq_supports(int isa);
MIXQ_EXPORT int mixq_has_bf16();

// Threads (the caller's included) and working memory. Null: the system refused.
MIXQ_EXPORT MixqContext* mixq_open(int threads, int isa);
MIXQ_EXPORT void mixq_close(MixqContext* context);

// Nanoseconds spent inside this context's calls since it was opened.
MIXQ_EXPORT int64_t mixq_busy_ns(const MixqContext* context);

// y[i] [T, N_i] = x [T, K] times w[i] transposed, for `count` matrices with the same K. Returns 0, or 1: no memory.
MIXQ_EXPORT int mixq_linear(MixqContext* context, int count, const MixqMatrix* const* w, const float* x, int64_t T,
                            float* const* y);

// How weights are fetched by decode (see decode.h): measured on the machine, without effect on results.
MIXQ_EXPORT void mixq_set_fetch(MixqContext* context, const MixqFetch* fetch);

// Scores [T, E] of x [T, D] in float32: weights and activations are not rounded.
MIXQ_EXPORT int mixq_router(MixqContext* context, const MixqMatrix* w, const float* x, int64_t T, float* y);

// ids and weights [T, A]: the experts with the A largest of the scores [T, E], the largest first and of equal ones the
// lower number first; weights are the softmax of the chosen scores. A NaN counts as the largest, and makes the
// weights NaN.
MIXQ_EXPORT void mixq_choose(MixqContext* context, const float* scores, int64_t T, int64_t E, int64_t A, int64_t* ids,
                             float* weights);

// out[t] = sum over a of weights[t, a] * expert[ids[t, a]](x[t]), with expert(x) = w2 (silu(w1 x) * w3 x).
// w: for each expert gate (w1), down (w2) and up (w3). A row of ids has no expert twice; a negative id, whose
// expert is computed elsewhere, adds nothing.
MIXQ_EXPORT int mixq_experts(MixqContext* context, const MixqMatrix* w, int64_t E, const float* x, int64_t T, int64_t A,
                             const int64_t* ids, const float* weights, float* out);

// x / sqrt(mean(x^2) + eps) * weight (bfloat16) for each row of x [T, D].
MIXQ_EXPORT void mixq_rms_norm(MixqContext* context, const float* x, const void* weight, float eps, int64_t T, int64_t D,
                               float* out);

// Read `bytes` with all threads, as `kind` says: 0 a plain sum, 1 one that fetches ahead, 2 from four rows at a time, 3 a
// sum that fetches as the context's plan says. For measuring the bandwidth; returns a value so that the reads are not dropped.
MIXQ_EXPORT int64_t mixq_read(MixqContext* context, const void* data, int64_t bytes, int kind);

// Rotate q [T, H, C] in place and k [T, KV, C] by the angles of their positions (pairs i and i + C/2; cos and sin are
// [T, C/2]), and write k and v [T, KV, C] into the cache at positions start .. start + T - 1: bfloat16 half to even,
// int8 with scale absmax/127, or float32.
MIXQ_EXPORT void mixq_rotary_append(MixqContext* context, const MixqKvCache* cache, float* q, const float* k,
                                    const float* v, const float* cos, const float* sin, int64_t T, int64_t H,
                                    int64_t start);

// out [T, H, C]: attention of T queries q [T, H, C] over the cache. Row t sees the positions up to length + t, itself
// included; with window > 0 only the last `window` of them. Query head h reads kv head h / (H / KV). A row's result
// depends only on the row and on what it sees. Returns 0, or 1: no memory.
MIXQ_EXPORT int mixq_attention(MixqContext* context, const MixqKvCache* cache, const float* q, int64_t T, int64_t H,
                               int64_t length, int64_t window, float* out);

// One pass of the network over the next tokens of S sequences, T in all: their embeddings, the layers with their caches
// written, the last norm and the head. Writes the ids [layers, T, A] of the chosen experts (0 in a dense model), and the
// logits of each sequence's last token [S, V], or of all [T, V]: the bits of the separate calls. Returns 0, or 1: no
// memory.
MIXQ_EXPORT int mixq_step(MixqContext* context, const MixqNetwork* network, const int64_t* tokens, int64_t S,
                          const MixqRows* rows, int all_logits, int64_t* ids, float* logits);
