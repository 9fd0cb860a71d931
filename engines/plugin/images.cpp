#include "images.h"

#include <algorithm>
#include <sstream>

#include "log.h"

namespace dycoke {

namespace {

constexpr int kPtxSm = 80;  // what the PTX was made for; later GPUs compile it

std::size_t bytes_of_line(std::istringstream& line, Image& image) {
  std::size_t bytes = 0;
  std::string warps, shared, hidden, size, grid;
  line >> image.name >> image.target >> image.entry >> warps >> image.warps >> shared >>
      image.shared_bytes >> hidden >> image.hidden >> size >> bytes >> grid >> image.grid[0] >>
      image.grid[1] >> image.grid[2];
  if (!line || warps != "warps" || shared != "shared" || hidden != "hidden" || size != "bytes" ||
      grid != "grid") {
    throw Error("kernel images: cannot read '" + line.str() + "'");
  }
  return bytes;
}

int sm_of(std::string const& target) {
  return target.rfind("sm_", 0) == 0 ? std::atoi(target.c_str() + 3) : 0;
}

}  // namespace

std::shared_ptr<Images const> Images::parse(std::string_view pack) {
  auto found = std::make_shared<Images>();
  std::vector<std::size_t> sizes;
  std::size_t place = 0;
  auto next_line = [&] {
    std::size_t end = pack.find('\n', place);
    if (end == std::string_view::npos) {
      throw Error("kernel images: the description does not end");
    }
    std::istringstream line{std::string(pack.substr(place, end - place))};
    place = end + 1;
    return line;
  };

  std::string word, version;
  auto first = next_line();
  first >> word >> version >> found->dtype_;
  if (!first || word != "dycoke-images" || version != "1") {
    throw Error("kernel images: this is not format 1; build the engine and the plugin from the "
                "same release");
  }
  for (;;) {
    auto line = next_line();
    line >> word;
    if (word == "end") {
      break;
    }
    if (word == "image") {
      found->images_.emplace_back();
      sizes.push_back(bytes_of_line(line, found->images_.back()));
      continue;
    }
    if (found->images_.empty()) {
      throw Error("kernel images: cannot read '" + line.str() + "'");
    }
    Image& image = found->images_.back();
    if (word == "parameter") {
      Parameter parameter;
      std::string alignment;
      line >> parameter.name >> parameter.bytes >> alignment;
      parameter.aligned = alignment == "aligned";
      image.parameters.push_back(parameter);
    } else if (word == "constant") {
      std::string name;
      int value = 0;
      line >> name >> value;
      image.constants[name] = value;
    }
    if (!line || (word != "parameter" && word != "constant")) {
      throw Error("kernel images: cannot read '" + line.str() + "'");
    }
  }
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] > pack.size() - place) {
      throw Error("kernel images: the code of " + found->images_[i].name + " is cut off");
    }
    found->images_[i].code = pack.substr(place, sizes[i]);  // a string: PTX must end in a zero
    place += sizes[i];
  }
  if (place != pack.size()) {
    throw Error("kernel images: something follows the code");
  }
  return found;
}

bool Images::has(std::string_view name) const {
  return std::any_of(images_.begin(), images_.end(),
                     [&](Image const& image) { return image.name == name; });
}

int Images::constant(std::string_view name, std::string const& constant) const {
  for (Image const& image : images_) {
    if (image.name == name && image.constants.count(constant) != 0) {
      return image.constants.at(constant);
    }
  }
  throw Error("kernel images: " + std::string(name) + " with " + constant + " is missing");
}

Image const& Images::choose(std::string_view name, int sm) const {
  Image const* best = nullptr;
  int best_rank = -1;  // a cubin's own number, then PTX
  std::string targets;
  for (Image const& image : images_) {
    if (image.name != name) {
      continue;
    }
    targets += (targets.empty() ? "" : ", ") + image.target;
    int const target = sm_of(image.target);
    int rank = -1;
    if (image.target == "ptx") {
      rank = sm >= kPtxSm ? 0 : -1;
    } else if (target == sm || (sm < 90 && target / 10 == sm / 10 && target < sm)) {
      rank = target;
    }
    if (rank > best_rank) {
      best = &image;
      best_rank = rank;
    }
  }
  if (best == nullptr) {
    throw Error("kernel " + std::string(name) + " has no image for sm_" + std::to_string(sm) +
                "; the engine holds: " + (targets.empty() ? "none" : targets));
  }
  return *best;
}

}  // namespace dycoke
