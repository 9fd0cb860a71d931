// TensorRT's part of a plugin's life, played for the tests: it loads the library, makes plugins from
// fields, asks them what a builder asks, and calls enqueue. Called from Python through ctypes.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstring>
#include <string>
#include <vector>

#include "fake_tensorrt.h"
#include "lives.h"

namespace {

struct Field {
  char const* name;
  std::int32_t type;
  void const* data;
  std::int32_t length;
};

int reported_major = NV_TENSORRT_MAJOR;
IPluginCreatorInterface* const* creators = nullptr;
std::int32_t creator_count = 0;
int interface_ = 3;

bool is_v3(IPluginCreatorInterface* creator) {
  return std::strcmp(creator->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") == 0;
}

// Of the interface in use.
template <class Creator>
Creator* find(char const* name) {
  for (std::int32_t i = 0; i < creator_count; ++i) {
    if (is_v3(creators[i]) != (interface_ == 3)) {
      continue;
    }
    auto* found = static_cast<Creator*>(creators[i]);
    if (std::strcmp(found->getPluginName(), name) == 0) {
      return found;
    }
  }
  return nullptr;
}

Life* from_bytes(char const* name, std::string const& bytes) {
  return interface_ == 3 ? LifeV3::from_bytes(find<IPluginCreatorV3One>(name), bytes)
                         : LifeV2::from_bytes(find<IPluginCreator>(name), bytes);
}

}  // namespace

// What a TensorRT library exports, and this one's plugins look for.
extern "C" __attribute__((visibility("default"))) std::int32_t getInferLibMajorVersion() noexcept {
  return reported_major;
}
extern "C" __attribute__((visibility("default"))) IPluginRegistry* getPluginRegistry() noexcept {
  static fake::Registry registry;
  return &registry;
}

extern "C" {

bool harness_init(void* library) {
  return reinterpret_cast<bool (*)(void*)>(dlsym(library, "initDycokePlugins"))(nullptr);
}

void harness_set_finder(void* library) {
  static fake::Finder finder;
  reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(&finder);
}
void* harness_open(char const* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    fake::messages = dlerror();
    return nullptr;
  }
  harness_set_finder(library);
  if (!harness_init(library)) {
    return nullptr;
  }
  creators = getPluginRegistry()->getAllCreators(&creator_count);
  return library;
}
int harness_creators() { return creator_count; }
// name, version and namespace
char const* harness_creator(int index) {
  static std::string text;
  auto describe = [](auto* creator) {
    return std::string(creator->getPluginName()) + " " + creator->getPluginVersion() + " " +
           creator->getPluginNamespace();
  };
  text = is_v3(creators[index]) ? describe(static_cast<IPluginCreatorV3One*>(creators[index]))
                                : describe(static_cast<IPluginCreator*>(creators[index]));
  return text.c_str();
}
void harness_use(int number) { interface_ = number; }
void harness_report_major(int major) { reported_major = major; }
char const* harness_messages() { return fake::messages.c_str(); }
void harness_clear() { fake::messages.clear(); }

// V2 knows no phase: made from fields it is for building, made from an engine's bytes it runs.
Life* harness_create(char const* name, Field const* fields, int count, int phase) {
  std::vector<PluginField> list;
  for (int i = 0; i < count; ++i) {
    list.emplace_back(fields[i].name, fields[i].data,
                      static_cast<PluginFieldType>(fields[i].type), fields[i].length);
  }
  PluginFieldCollection const collection{count, list.data()};
  auto const when = static_cast<TensorRTPhase>(phase);
  if (interface_ == 3) {
    return LifeV3::of(find<IPluginCreatorV3One>(name)->createPlugin(name, &collection, when));
  }
  Life* made = LifeV2::of(find<IPluginCreator>(name)->createPlugin(name, &collection));
  if (made == nullptr || when == TensorRTPhase::kBUILD) {
    return made;
  }
  std::string const bytes = made->bytes();
  delete made;
  return from_bytes(name, bytes);
}
void harness_destroy(Life* plugin) { delete plugin; }
Life* harness_clone(Life* plugin) { return plugin->clone(); }
Life* harness_attach(Life* plugin) { return plugin->attach(); }
std::int64_t harness_serialize(Life* plugin, char* out, std::int64_t most) {
  std::string const bytes = plugin->bytes();
  if (static_cast<std::int64_t>(bytes.size()) <= most) {
    std::memcpy(out, bytes.data(), bytes.size());
  }
  return static_cast<std::int64_t>(bytes.size());
}
Life* harness_deserialize(char const* name, char const* data, std::int64_t size) {
  return from_bytes(name, std::string(data, static_cast<std::size_t>(size)));
}
int harness_outputs(Life* plugin) { return plugin->outputs(); }

// Types and shapes of the outputs for inputs of these; fills `out` but for its data.
int harness_infer(Life* plugin, Tensor const* in, int inputs, Tensor* out, int outputs) {
  std::vector<DataType> types(static_cast<std::size_t>(outputs)), of_inputs;
  std::vector<DimsExprs> shapes(static_cast<std::size_t>(inputs)),
      made(static_cast<std::size_t>(outputs));
  fake::Builder builder;
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
  if (!plugin->types(of_inputs, types) || !plugin->shapes(shapes, made, builder)) {
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

// How many (type, format) pairs the plugin takes for one tensor; -1 if the right one is not among
// them.
int harness_combinations(Life* plugin, Tensor const* tensors, int inputs, int outputs,
                         int position) {
  int taken = 0;
  bool right = false;
  for (int type = 0; type < 14; ++type) {
    for (int format = 0; format < 13; ++format) {
      if (plugin->supports(tensors, {position, inputs, outputs}, static_cast<DataType>(type),
                           static_cast<TensorFormat>(format))) {
        ++taken;
        right |= type == tensors[position].type && format == 0;
      }
    }
  }
  return right ? taken : -1;
}
int harness_configure(Life* plugin, Tensor const* tensors, int inputs, int outputs) {
  return plugin->configure(tensors, inputs, outputs);
}
std::int64_t harness_workspace(Life* plugin, Tensor const* tensors, int inputs, int outputs) {
  return static_cast<std::int64_t>(plugin->workspace(tensors, inputs, outputs));
}
int harness_enqueue(Life* plugin, Tensor const* tensors, int inputs, int outputs,
                    void* workspace) {
  std::vector<void const*> in;
  std::vector<void*> out;
  for (int i = 0; i < inputs + outputs; ++i) {
    i < inputs ? in.push_back(tensors[i].data) : out.push_back(tensors[i].data);
  }
  return plugin->enqueue(tensors, inputs, outputs, in.data(), out.data(), workspace);
}
}  // extern "C"
