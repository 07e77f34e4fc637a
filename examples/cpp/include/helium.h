/* Helium in a program of your own: a bundle that `python -m helium_mlx.export` wrote, text in, text out.
 *
 * Threads. Models live in one thread of the library's, where every array is; any function may be called from any
 * thread. helium_open, helium_generate and helium_check wait until that thread is done with them; several at once are
 * served one after the other, in the order of their calls. Callbacks run on it, while the caller waits: from within
 * them these three are refused (HELIUM_ERROR_STATE), helium_close takes effect later, and all other functions do as
 * ever. A slow callback holds the generation up, no text is lost. A program that uses MLX itself, too, must open its
 * first model before: MLX lets exported functions run on the first stream of a process alone.
 *
 * Strings are UTF-8 and end at a zero. Text that is handed out is never cut inside of a character. Nothing that a
 * caller passes in is kept after the call, cancellations aside.
 *
 * Errors. A function that can fail returns a code; helium_error_message says in one line of UTF-8 what came, what was
 * expected and what to do. No exception leaves the library.
 */
#ifndef HELIUM_H
#define HELIUM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define HELIUM_API __attribute__((visibility("default")))
#else
#define HELIUM_API
#endif

typedef enum helium_status {
  HELIUM_OK = 0,
  /* An argument that is missing or out of range, or text that is not UTF-8. */
  HELIUM_ERROR_ARGUMENT = 1,
  /* A file of the bundle that is missing or cannot be read. */
  HELIUM_ERROR_FILE = 2,
  /* A bundle that is damaged or malformed: a size, a hash or a field is not as it should be. */
  HELIUM_ERROR_BUNDLE = 3,
  /* A bundle made for another version of the format or of MLX, or for another backend. */
  HELIUM_ERROR_VERSION = 4,
  /* A prompt longer than the bundle's context. */
  HELIUM_ERROR_CONTEXT = 5,
  /* The bundle's test vectors came out differently. */
  HELIUM_ERROR_CHECK = 6,
  /* A function called from within a callback, or after another thread used MLX. */
  HELIUM_ERROR_STATE = 7,
  /* MLX failed, or there was not enough memory. */
  HELIUM_ERROR_RUNTIME = 8,
  /* A check that was cancelled, or whose model was closed: the bundle may be right or not. */
  HELIUM_ERROR_CANCELLED = 9,
  /* The model's logits are NaN, infinite or all the same, with the first token or a later one: the text ends there. */
  HELIUM_ERROR_LOGITS = 10
} helium_status;

typedef enum helium_finish_reason {
  HELIUM_FINISH_NONE = 0,
  HELIUM_FINISH_EOS = 1,
  /* A stop string was completed. It is not part of the text. */
  HELIUM_FINISH_STOP = 2,
  /* max_tokens, or the end of the context. */
  HELIUM_FINISH_LENGTH = 3,
  HELIUM_FINISH_CANCELLED = 4
} helium_finish_reason;

typedef enum helium_verification {
  /* Sizes and hashes of every file. */
  HELIUM_VERIFY_ALL = 0,
  /* As HELIUM_VERIFY_ALL, but the size alone of weights: for an app that verified its bundle once already. */
  HELIUM_VERIFY_ALL_BUT_WEIGHTS = 1
} helium_verification;

typedef struct helium_model helium_model;
typedef struct helium_cancellation helium_cancellation;

typedef struct helium_info {
  /* In tokens, prompt and completion together. */
  int32_t context;
  int32_t vocab_size;
  int32_t num_hidden_layers;
  double bits_per_weight;
  /* Strings live as long as the model. */
  const char* model_type;
  const char* backend;
  const char* mlx_version;
} helium_info;

typedef struct helium_options {
  /* At least 1. */
  int32_t max_tokens;
  /* 0 is greedy: then nothing below has an effect, but stop, ignore_eos and cancellation. */
  float temperature;
  /* Above 0 and at most 1, which keeps all. */
  float top_p;
  /* 0 keeps all. */
  int32_t top_k;
  /* 0 to 1. */
  float min_p;
  /* Used if `has_seed`: the same seed gives the same text, the one that `helium_mlx` in Python gives. */
  uint64_t seed;
  bool has_seed;
  bool ignore_eos;
  /* The text ends before any of these. */
  const char* const* stop;
  size_t stop_count;
  /* NULL, or what ends the generation early when cancelled, before it begins too. */
  const helium_cancellation* cancellation;
} helium_options;

typedef struct helium_chunk {
  /* What became certain with this token, often a word, possibly nothing. Zero-terminated; lives during the callback. */
  const char* text;
  /* In bytes: a text may hold zeros. */
  size_t length;
  /* -1 where a generation was cancelled before it had any. */
  int32_t token;
  /* HELIUM_FINISH_NONE but for the last chunk. */
  helium_finish_reason finish_reason;
} helium_chunk;

/* Called for every token, and for the last chunk. Return false to cancel. */
typedef bool (*helium_on_chunk)(void* context, const helium_chunk* chunk);

/* Called after each part of the prompt. Return false to cancel. */
typedef bool (*helium_on_progress)(void* context, int32_t done, int32_t total);

typedef struct helium_statistics {
  int32_t prompt_tokens;
  int32_t generated_tokens;
  /* From the start to the first token. */
  double prompt_seconds;
  /* From the first token to the last. */
  double generation_seconds;
  /* The most memory that MLX's arrays had in this process. */
  uint64_t peak_bytes;
  helium_finish_reason finish_reason;
} helium_statistics;

typedef struct helium_check_report {
  int32_t vectors;
  int32_t tokens;
  int32_t logits;
  /* The largest difference of a logit from the bundle's, and the largest that was allowed. */
  double largest_difference;
  double tolerance;
} helium_check_report;

/* The last error of this thread, "" if there was none. Lives until the next call on this thread. */
HELIUM_API const char* helium_error_message(void);

/* The version of the MLX that is linked in. */
HELIUM_API const char* helium_mlx_version(void);

/* Load a bundle. On success *model is a handle for helium_close, else NULL. */
HELIUM_API helium_status helium_open(const char* bundle, helium_verification verification, helium_model** model);

/* Cancel what runs on the model and what waits for it, wait until that has ended, and free everything. NULL is ignored.
 * No call on the model may begin once this one has. From within a callback it returns at once, and everything is freed
 * before the callback's own call returns. */
HELIUM_API void helium_close(helium_model* model);

HELIUM_API helium_info helium_get_info(const helium_model* model);

/* The bundle's own defaults: what the model's publisher sampled with, without seed and stop strings. */
HELIUM_API helium_options helium_default_options(const helium_model* model);

/* Write up to `capacity` ids of a text, one BOS in front, and their number to *count, which may be larger. */
HELIUM_API helium_status helium_tokenize(const helium_model* model, const char* text, int32_t* ids, size_t capacity,
                                         size_t* count);

/* Complete `prompt`, which may fill the context: then one token follows. `options`, `on_chunk`, `on_progress` and
 * `statistics` may be NULL. A generation that was cancelled is not an error: its finish reason says so. */
HELIUM_API helium_status helium_generate(helium_model* model, const char* prompt, const helium_options* options,
                                         helium_on_chunk on_chunk, helium_on_progress on_progress, void* context,
                                         helium_statistics* statistics);

/* Run the bundle's test vectors: ids, logits, greedy tokens and streamed pieces. `cancellation`, which is heeded
 * between two tokens, and `report` may be NULL. */
HELIUM_API helium_status helium_check(helium_model* model, const helium_cancellation* cancellation,
                                      helium_check_report* report);

/* A flag that may be set from any thread, also from a signal handler. It may serve several calls, and must outlive
 * them. */
HELIUM_API helium_cancellation* helium_cancellation_new(void);
HELIUM_API void helium_cancel(helium_cancellation* cancellation);
HELIUM_API void helium_cancellation_free(helium_cancellation* cancellation);

#ifdef __cplusplus
}
#endif

#endif
