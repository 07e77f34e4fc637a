#include "tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <charconv>

#include "error.h"
#include "files.h"
#include "utf8.h"
#include "word_characters.h"

namespace helium {
namespace {

constexpr std::uint64_t kMostModelBytes = 64'000'000;
constexpr std::string_view kBytePiece = "<0x00>";

std::uint8_t byte_of(std::string_view piece) {
  unsigned byte = 0;
  std::from_chars(piece.data() + 3, piece.data() + 5, byte, 16);
  return static_cast<std::uint8_t>(byte);
}

bool is_alone(std::string_view text, std::size_t start, std::size_t end) {
  const auto before = last_character(text.substr(0, start)), after = first_character(text.substr(end));
  return !(before && is_word_character(*before)) && !(after && is_word_character(*after));
}

void check(const sentencepiece::util::Status& status, const std::string& what) {
  if (!status.ok()) throw Error(HELIUM_ERROR_BUNDLE, what + " (" + status.ToString() + "); export the bundle anew");
}

}  // namespace

ContentFinder::ContentFinder(std::vector<AddedToken> tokens) : by_byte_(256) {
  const auto longer = [](const AddedToken& a, const AddedToken& b) { return a.content.size() > b.content.size(); };
  std::stable_sort(tokens.begin(), tokens.end(), longer);
  for (AddedToken& token : tokens) by_byte_[static_cast<std::uint8_t>(token.content[0])].push_back(std::move(token));
}

const AddedToken* ContentFinder::at(std::string_view text, std::size_t at) const {
  const auto& candidates = by_byte_[static_cast<std::uint8_t>(text[at])];
  const auto begins = [&](const AddedToken& token) { return text.substr(at).starts_with(token.content); };
  const auto found = std::find_if(candidates.begin(), candidates.end(), begins);
  return found == candidates.end() ? nullptr : &*found;
}

Tokenizer::Tokenizer(const Manifest& manifest, const std::filesystem::path& model)
    : spec_(manifest.tokenizer),
      bos_(manifest.bos),
      added_(manifest.tokenizer.added_tokens),
      literals_(manifest.tokenizer.literals),
      processor_(std::make_unique<sentencepiece::SentencePieceProcessor>()) {
  check(processor_->LoadFromSerializedProto(read_file(model, kMostModelBytes)),
        model.string() + " is not a SentencePiece model");
  for (int id = 0; id < processor_->GetPieceSize(); ++id) {
    const std::string& text = processor_->IdToPiece(id);
    if (!is_utf8(text) || (processor_->IsByte(id) && text.size() != kBytePiece.size())) {
      throw Error(HELIUM_ERROR_BUNDLE, model.string() + " has the piece " + shown(text) +
                                           ", which is not UTF-8 or not a byte; export the bundle anew");
    }
    if (processor_->IsByte(id)) byte_ids_[byte_of(text)] = id;
  }
  for (const AddedToken& token : spec_.added_tokens) {
    const bool leaves_trace = !token.special;
    added_pieces_[token.id] = leaves_trace ? Piece{Piece::Kind::kText, token.content, 0} : Piece{};
    if (token.id == bos_ && spelled_bos_.empty()) spelled_bos_ = token.content;
  }
}

Tokenizer::~Tokenizer() = default;

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  if (!is_utf8(text)) throw Error(HELIUM_ERROR_ARGUMENT, "the text is not UTF-8; convert it first");
  while (!spelled_bos_.empty() && text.starts_with(spelled_bos_)) text.remove_prefix(spelled_bos_.size());
  std::vector<std::int32_t> ids;
  std::size_t start = 0;
  for (std::size_t at = 0; at < text.size();) {
    const AddedToken* token = added_.at(text, at);
    if (token == nullptr) {
      ++at;
      continue;
    }
    const std::size_t end = at + token->content.size();
    if (!token->single_word || is_alone(text, at, end)) {
      encode_segment(text.substr(start, at - start), ids);
      ids.push_back(token->id);
      start = end;
    }
    at = end;
  }
  encode_segment(text.substr(start), ids);
  const auto first = std::find_if(ids.begin(), ids.end(), [&](std::int32_t id) { return id != bos_; });
  ids.erase(ids.begin(), first);
  ids.insert(ids.begin(), bos_);
  return ids;
}

void Tokenizer::encode_segment(std::string_view text, std::vector<std::int32_t>& ids) const {
  if (text.empty()) return;
  const std::string prefixed = spec_.segment_prefix + std::string(text);
  const std::string_view segment = prefixed;
  std::vector<Found> found;
  std::size_t start = 0;
  for (std::size_t at = 0; at < segment.size();) {
    const AddedToken* literal = literals_.at(segment, at);
    if (literal == nullptr) {
      ++at;
      continue;
    }
    encode_pieces(segment.substr(start, at - start), found);
    found.push_back({literal->id, segment.substr(at, literal->content.size())});
    start = at = at + literal->content.size();
  }
  encode_pieces(segment.substr(start), found);
  for (std::size_t i = 0; i < found.size(); ++i) {
    const bool beside_unknown =
        (i > 0 && is_unknown(found[i - 1])) || (i + 1 < found.size() && is_unknown(found[i + 1]));
    if (found[i].literal.empty() || !is_unknown(found[i]) || !beside_unknown) {
      ids.push_back(found[i].id);
      continue;
    }
    // A run of what is unknown is one text to `tokenizers`, spelled in bytes, a spelled-out "<unk>" in it as well.
    for (const char byte : found[i].literal) ids.push_back(byte_ids_[static_cast<std::uint8_t>(byte)]);
  }
}

void Tokenizer::encode_pieces(std::string_view text, std::vector<Found>& found) const {
  if (text.empty()) return;
  std::vector<int> pieces;
  check(processor_->Encode({text.data(), text.size()}, &pieces), "the tokenizer cannot encode a text");
  for (const int id : pieces) found.push_back({id, {}});
}

// Bytes that SentencePiece found are of a character without a piece.
bool Tokenizer::is_unknown(const Found& found) const {
  return found.literal.empty() ? processor_->IsByte(found.id) : processor_->IsUnknown(found.id);
}

Piece Tokenizer::piece(std::int32_t id) const {
  const auto added = added_pieces_.find(id);
  if (added != added_pieces_.end()) return added->second;
  if (id < 0 || id >= processor_->GetPieceSize()) return {};
  const std::string& text = processor_->IdToPiece(id);
  if (processor_->IsByte(id)) {
    return {Piece::Kind::kByte, "", byte_of(text)};
  }
  if (spec_.byte_fallback) return {Piece::Kind::kText, with_spaces(text), 0};
  if (processor_->IsControl(id)) return {Piece::Kind::kText, "", 0};
  if (!processor_->IsUnknown(id)) return {Piece::Kind::kText, text, 0};
  std::string unknown;
  check(processor_->Decode(std::vector<int>{id}, &unknown), "the tokenizer cannot decode an id");
  return {Piece::Kind::kText, unknown, 0};
}

std::string Tokenizer::special_name(std::int32_t id) const {
  for (const AddedToken& token : spec_.added_tokens) {
    if (token.id == id) return token.special ? token.content : "";
  }
  if (spec_.byte_fallback || id < 0 || id >= processor_->GetPieceSize()) return "";
  return processor_->IsControl(id) ? processor_->IdToPiece(id) : "";
}

std::unique_ptr<Detokenizer> Tokenizer::detokenizer() const {
  if (spec_.byte_fallback) return std::make_unique<ByteFallbackDetokenizer>(spec_.strip);
  return std::make_unique<SentencePieceDetokenizer>(spec_.dummy_prefix);
}

}  // namespace helium
