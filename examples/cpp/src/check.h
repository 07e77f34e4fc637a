// A bundle's own test vectors: what the model said in Python, to be said again here.
#pragma once

#include <functional>

#include "bundle.h"
#include "helium.h"

namespace helium {

// Tokenize, prefill and decode every vector of vectors.json greedily. Throws Error (HELIUM_ERROR_CHECK) at the first
// difference in ids, logits, tokens or streamed pieces, and (HELIUM_ERROR_CANCELLED) once `may_go_on` refuses.
helium_check_report check_vectors(Bundle& bundle, const std::function<bool()>& may_go_on);

}  // namespace helium
