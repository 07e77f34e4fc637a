/* A host in C: what Swift and Objective-C see of the library. Completes a prompt and prints it. */
#include <stdio.h>
#include <string.h>

#include "helium.h"

static bool print_chunk(void* context, const helium_chunk* chunk) {
  *(size_t*)context += fwrite(chunk->text, 1, chunk->length, stdout);
  return true;
}

static int failed(void) {
  fprintf(stderr, "%s\n", helium_error_message());
  return 1;
}

int main(int argc, char** argv) {
  helium_model* model = NULL;
  if (argc < 2 || helium_open(argv[1], HELIUM_VERIFY_ALL, &model) != HELIUM_OK) return failed();
  const char* stops[] = {"."};
  size_t written = 0;
  helium_options options = helium_default_options(model);
  options.max_tokens = 40;
  options.stop = stops;
  options.stop_count = 1;
  helium_statistics statistics;
  memset(&statistics, 0, sizeof statistics);
  helium_status status = helium_generate(model, "Once upon a time", &options, print_chunk, NULL, &written, &statistics);
  if (status != HELIUM_OK) failed();
  helium_close(model);
  return status == HELIUM_OK && written > 0 && statistics.generated_tokens > 0 ? 0 : 1;
}
