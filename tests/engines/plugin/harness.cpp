// TensorRT's part of a plugin's life, played for the tests: it loads the library, makes plugins from
// fields, asks them what a builder asks, and calls enqueue. Called from Python through ctypes.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace {

std::string messages;
int reported_major = NV_TENSORRT_MAJOR;

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

struct Field {
  char const* name;
  std::int32_t type;
  void const* data;
  std::int32_t length;
};

struct Tensor {
  std::int32_t rank;
  std::int64_t sizes[8];
  std::int32_t type;
  void* data;
};

IPluginCreatorInterface* const* creators = nullptr;
std::int32_t creator_count = 0;

IPluginCreatorV3One* creator(char const* name) {
  for (std::int32_t i = 0; i < creator_count; ++i) {
    auto* found = static_cast<IPluginCreatorV3One*>(creators[i]);
    if (std::strcmp(found->getPluginName(), name) == 0) {
      return found;
    }
  }
  return nullptr;
}

IPluginV3OneBuild* build(IPluginV3* plugin) {
  return static_cast<IPluginV3OneBuild*>(
      plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
}
IPluginV3OneRuntime* runtime(IPluginV3* plugin) {
  return static_cast<IPluginV3OneRuntime*>(
      plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

std::vector<PluginTensorDesc> descriptions(Tensor const* tensors, int count) {
  std::vector<PluginTensorDesc> found(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) {
    auto& one = found[static_cast<std::size_t>(i)];
    one.dims.nbDims = tensors[i].rank;
    std::copy(tensors[i].sizes, tensors[i].sizes + 8, one.dims.d);
    one.type = static_cast<DataType>(tensors[i].type);
    one.format = TensorFormat::kLINEAR;
    one.scale = 1;
  }
  return found;
}

std::vector<DynamicPluginTensorDesc> dynamic(Tensor const* tensors, int count) {
  std::vector<DynamicPluginTensorDesc> found;
  for (PluginTensorDesc const& desc : descriptions(tensors, count)) {
    DynamicPluginTensorDesc one{desc, desc.dims, desc.dims, desc.dims};
    for (int i = 0; i < desc.dims.nbDims; ++i) {
      one.desc.dims.d[i] = -1;  // known at run time
    }
    found.push_back(one);
  }
  return found;
}

}  // namespace

// What a TensorRT library exports, and this one's plugins look for.
extern "C" __attribute__((visibility("default"))) std::int32_t getInferLibMajorVersion() noexcept {
  return reported_major;
}

extern "C" {

void* harness_open(char const* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    messages = dlerror();
    return nullptr;
  }
  static Finder finder;
  reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(&finder);
  creators = reinterpret_cast<IPluginCreatorInterface* const* (*)(std::int32_t&)>(
      dlsym(library, "getCreators"))(creator_count);
  return library;
}
int harness_creators() { return creator_count; }
char const* harness_creator(int index) {
  return static_cast<IPluginCreatorV3One*>(creators[index])->getPluginName();
}
void harness_report_major(int major) { reported_major = major; }
void harness_set_finder(void* library) {
  static Finder finder;
  reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(&finder);
}
bool harness_init(void* library) {
  return reinterpret_cast<bool (*)(void*)>(dlsym(library, "initDycokePlugins"))(nullptr);
}
char const* harness_messages() { return messages.c_str(); }
void harness_clear() { messages.clear(); }

IPluginV3* harness_create(char const* name, Field const* fields, int count, int phase) {
  std::vector<PluginField> list;
  for (int i = 0; i < count; ++i) {
    list.emplace_back(fields[i].name, fields[i].data,
                      static_cast<PluginFieldType>(fields[i].type), fields[i].length);
  }
  PluginFieldCollection collection{count, list.data()};
  return creator(name)->createPlugin(name, &collection, static_cast<TensorRTPhase>(phase));
}
void harness_destroy(IPluginV3* plugin) { delete plugin; }
IPluginV3* harness_clone(IPluginV3* plugin) { return plugin->clone(); }

// The fields as bytes: an engine's plan holds them so.
std::int64_t harness_serialize(IPluginV3* plugin, char* out, std::int64_t most) {
  std::string bytes;
  PluginFieldCollection const* fields = runtime(plugin)->getFieldsToSerialize();
  for (std::int32_t i = 0; i < fields->nbFields; ++i) {
    PluginField const& field = fields->fields[i];
    int const wide = field.type == PluginFieldType::kUNKNOWN ? 1
                     : field.type == PluginFieldType::kINT64 ? 8
                                                             : 4;
    std::int32_t const head[] = {static_cast<std::int32_t>(std::strlen(field.name)),
                                 static_cast<std::int32_t>(field.type), field.length, wide};
    bytes.append(reinterpret_cast<char const*>(head), sizeof(head));
    bytes.append(field.name);
    bytes.append(static_cast<char const*>(field.data),
                 static_cast<std::size_t>(wide) * static_cast<std::size_t>(field.length));
  }
  if (static_cast<std::int64_t>(bytes.size()) <= most) {
    std::memcpy(out, bytes.data(), bytes.size());
  }
  return static_cast<std::int64_t>(bytes.size());
}

IPluginV3* harness_deserialize(char const* name, char const* data, std::int64_t size) {
  std::string copy(data, static_cast<std::size_t>(size));
  std::vector<std::string> names;
  std::vector<std::vector<char>> values;
  std::vector<Field> fields;
  for (std::size_t place = 0; place < copy.size();) {
    std::int32_t head[4];
    std::memcpy(head, copy.data() + place, sizeof(head));
    place += sizeof(head);
    names.push_back(copy.substr(place, static_cast<std::size_t>(head[0])));
    place += static_cast<std::size_t>(head[0]);
    auto const bytes = static_cast<std::size_t>(head[2]) * static_cast<std::size_t>(head[3]);
    values.emplace_back(copy.data() + place, copy.data() + place + bytes);
    place += bytes;
    fields.push_back({nullptr, head[1], nullptr, head[2]});
  }
  for (std::size_t i = 0; i < fields.size(); ++i) {
    fields[i].name = names[i].c_str();
    fields[i].data = values[i].data();
  }
  return harness_create(name, fields.data(), static_cast<int>(fields.size()),
                        static_cast<int>(TensorRTPhase::kRUNTIME));
}

int harness_outputs(IPluginV3* plugin) { return build(plugin)->getNbOutputs(); }

// Types and shapes of the outputs for inputs of these; fills `out` but for its data.
int harness_infer(IPluginV3* plugin, Tensor const* in, int inputs, Tensor* out, int outputs) {
  std::vector<DataType> types(static_cast<std::size_t>(outputs)), of_inputs;
  std::vector<DimsExprs> shapes(static_cast<std::size_t>(inputs)),
      made(static_cast<std::size_t>(outputs));
  Builder builder;
  for (int i = 0; i < inputs; ++i) {
    of_inputs.push_back(static_cast<DataType>(in[i].type));
    auto& shape = shapes[static_cast<std::size_t>(i)];
    shape.nbDims = in[i].rank;
    for (int axis = 0; axis < in[i].rank; ++axis) {
      shape.d[axis] = builder.constant(in[i].sizes[axis]);
    }
  }
  for (auto& one : made) {
    one.nbDims = -1;  // to be filled in
  }
  if (build(plugin)->getOutputDataTypes(types.data(), outputs, of_inputs.data(), inputs) != 0 ||
      build(plugin)->getOutputShapes(shapes.data(), inputs, nullptr, 0, made.data(), outputs,
                                     builder) != 0) {
    return -1;
  }
  for (int i = 0; i < outputs; ++i) {
    auto const& shape = made[static_cast<std::size_t>(i)];
    out[i].rank = shape.nbDims;
    out[i].type = static_cast<std::int32_t>(types[static_cast<std::size_t>(i)]);
    for (int axis = 0; axis < shape.nbDims; ++axis) {
      if (shape.d[axis] == nullptr) {
        return -2;
      }
      out[i].sizes[axis] = shape.d[axis]->getConstantValue();
    }
  }
  return 0;
}

// How many (type, format) pairs the plugin takes for one tensor, those before it being right and
// those behind it being nonsense; -1 if the right one is not among them.
int harness_combinations(IPluginV3* plugin, Tensor const* tensors, int inputs, int outputs,
                         int position) {
  auto list = dynamic(tensors, inputs + outputs);
  for (std::size_t i = static_cast<std::size_t>(position) + 1; i < list.size(); ++i) {
    std::memset(&list[i], 0xee, sizeof(list[i]));
  }
  int taken = 0;
  bool right = false;
  for (int type = 0; type < 14; ++type) {
    for (int format = 0; format < 13; ++format) {
      auto& desc = list[static_cast<std::size_t>(position)].desc;
      desc.type = static_cast<DataType>(type);
      desc.format = static_cast<TensorFormat>(format);
      if (build(plugin)->supportsFormatCombination(position, list.data(), inputs, outputs)) {
        ++taken;
        right |= type == tensors[position].type && format == 0;
      }
    }
  }
  return right ? taken : -1;
}

int harness_configure(IPluginV3* plugin, Tensor const* tensors, int inputs, int outputs) {
  auto const list = dynamic(tensors, inputs + outputs);
  return build(plugin)->configurePlugin(list.data(), inputs, list.data() + inputs, outputs);
}
std::int64_t harness_workspace(IPluginV3* plugin, Tensor const* tensors, int inputs, int outputs) {
  auto const list = dynamic(tensors, inputs + outputs);
  return static_cast<std::int64_t>(
      build(plugin)->getWorkspaceSize(list.data(), inputs, list.data() + inputs, outputs));
}

IPluginV3* harness_attach(IPluginV3* plugin) { return runtime(plugin)->attachToContext(nullptr); }

int harness_enqueue(IPluginV3* plugin, Tensor const* tensors, int inputs, int outputs,
                    void* workspace) {
  auto const list = descriptions(tensors, inputs + outputs);
  std::vector<void const*> in;
  std::vector<void*> out;
  for (int i = 0; i < inputs + outputs; ++i) {
    i < inputs ? in.push_back(tensors[i].data) : out.push_back(tensors[i].data);
  }
  if (runtime(plugin)->onShapeChange(list.data(), inputs, list.data() + inputs, outputs) != 0) {
    return -2;
  }
  return runtime(plugin)->enqueue(list.data(), list.data() + inputs, in.data(), out.data(),
                                  workspace, nullptr);
}
}  // extern "C"
