// What TensorRT hands to plugins, for the harness: a logger, expressions of a builder's shapes, and
// a registry that keeps what is registered.
#pragma once

#include <NvInferRuntime.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

namespace fake {

using namespace nvinfer1;

inline std::string messages;

class Logger final : public ILogger {
 public:
  void log(Severity, char const* message) noexcept override {
    messages += std::string(message) + "\n";
  }
};

class Finder final : public ILoggerFinder {
 public:
  ILogger* findLogger() override { return &logger_; }

 private:
  Logger logger_;
};

// Expressions of a builder: IExprBuilder forwards to an implementation, which here is itself.
class Expression final : public IDimensionExpr, public apiv::VDimensionExpr {
 public:
  explicit Expression(std::int64_t value) : value_(value) { mImpl = this; }
  bool isConstant() const override { return true; }
  std::int64_t getConstantValue() const override { return value_; }
  bool isSizeTensor() const override { return false; }
  ~Expression() noexcept override = default;

 private:
  std::int64_t value_;
};

class Builder final : public IExprBuilder, public apiv::VExprBuilder {
 public:
  Builder() { mImpl = this; }
  ~Builder() noexcept override = default;
  IDimensionExpr const* constant(std::int64_t value) override {
    made_.push_back(std::make_unique<Expression>(value));
    return made_.back().get();
  }
  IDimensionExpr const* operation(DimensionOperation op, IDimensionExpr const& first,
                                  IDimensionExpr const& second) override {
    std::int64_t const a = static_cast<Expression const&>(first).getConstantValue();
    std::int64_t const b = static_cast<Expression const&>(second).getConstantValue();
    return op == DimensionOperation::kPROD ? constant(a * b) : nullptr;
  }
  IDimensionExpr const* declareSizeTensor(std::int32_t, IDimensionExpr const&,
                                          IDimensionExpr const&) override {
    return nullptr;
  }

 private:
  std::vector<std::unique_ptr<Expression>> made_;
};

// registerCreator and getAllCreators; nothing else is ever called.
class Registry final : public IPluginRegistry {
 public:
  bool registerCreator(IPluginCreatorInterface& creator, char const* const) noexcept override {
    creators_.push_back(&creator);
    return true;
  }
  IPluginCreatorInterface* const* getAllCreators(std::int32_t* const count) const noexcept override {
    *count = static_cast<std::int32_t>(creators_.size());
    return creators_.data();
  }

#if NV_TENSORRT_MAJOR < 11
  bool registerCreator(IPluginCreator&, char const* const) noexcept override { std::abort(); }
  IPluginCreator* const* getPluginCreatorList(std::int32_t* const) const noexcept override {
    std::abort();
  }
  IPluginCreator* getPluginCreator(char const* const, char const* const,
                                   char const* const) noexcept override {
    std::abort();
  }
  bool deregisterCreator(IPluginCreator const&) noexcept override { std::abort(); }
#endif
  void setErrorRecorder(IErrorRecorder* const) noexcept override { std::abort(); }
  IErrorRecorder* getErrorRecorder() const noexcept override { std::abort(); }
  bool isParentSearchEnabled() const override { std::abort(); }
  void setParentSearchEnabled(bool const) override { std::abort(); }
  PluginLibraryHandle loadLibrary(char const*) noexcept override { std::abort(); }
  void deregisterLibrary(PluginLibraryHandle) noexcept override { std::abort(); }
  IPluginCreatorInterface* getCreator(char const* const, char const* const,
                                      char const* const) noexcept override {
    std::abort();
  }
  bool deregisterCreator(IPluginCreatorInterface const&) noexcept override { std::abort(); }
  IPluginResource* acquirePluginResource(char const*, IPluginResource*) noexcept override {
    std::abort();
  }
  std::int32_t releasePluginResource(char const*) noexcept override { std::abort(); }
  IPluginCreatorInterface* const* getAllCreatorsRecursive(std::int32_t* const) noexcept override {
    std::abort();
  }

 private:
  std::vector<IPluginCreatorInterface*> creators_;
};

}  // namespace fake
