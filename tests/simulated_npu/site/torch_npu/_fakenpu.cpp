// Simulated "npu" device: PrivateUse1 backend whose memory is host memory and whose
// kernels are the CPU kernels.  One boxed fallback lends each npu tensor to the CPU
// kernel as a zero-copy CPU alias and turns the results back into npu tensors.
// Written for tests only: it proves placement/dispatch, not Ascend numerics.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <pthread.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>

namespace fakenpu {
using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;
constexpr auto kNPU = c10::DeviceType::PrivateUse1;
constexpr int kMaxDevices = 16;

// ---------------------------------------------------------------- device state
static int device_count_env() {
  const char* s = std::getenv("FAKENPU_DEVICE_COUNT");
  int n = s ? std::atoi(s) : 1;
  return std::min(std::max(n, 0), kMaxDevices);
}
static const int g_count = device_count_env();
static thread_local DeviceIndex t_current = 0;
static std::atomic<bool> g_initialized{false}, g_bad_fork{false};

static void check_fork() {
  TORCH_CHECK(!g_bad_fork,
      "Cannot re-initialize NPU in forked subprocess. To use NPU with multiprocessing, "
      "you must use the 'spawn' start method");
}
static void touch() {
  check_fork();
  if (!g_initialized.exchange(true)) {
    pthread_atfork(nullptr, nullptr, [] { g_bad_fork = true; });
  }
}
static void set_device(DeviceIndex i) {
  TORCH_CHECK(i >= 0 && i < g_count, "Invalid NPU device index ", (int)i, ": ", g_count,
              " device(s) available");
  t_current = i;
}
static Device norm(Device d) {
  DeviceIndex i = d.has_index() ? d.index() : t_current;
  TORCH_CHECK(i >= 0 && i < g_count, "Invalid NPU device index ", (int)i, ": ", g_count,
              " device(s) available");
  return Device(kNPU, i);
}

// ---------------------------------------------------------------- memory
struct Stats { std::atomic<int64_t> cur{0}, peak{0}, allocs{0}; };
static Stats g_stats[kMaxDevices];
static void account(DeviceIndex i, int64_t n) {
  auto& s = g_stats[i];
  int64_t now = (s.cur += n);
  if (n > 0) {
    ++s.allocs;
    int64_t p = s.peak;
    while (now > p && !s.peak.compare_exchange_weak(p, now)) {}
  }
}
struct Block { c10::DataPtr host; c10::Storage keep; int64_t n; DeviceIndex dev; };
static void free_block(void* p) {
  auto* b = static_cast<Block*>(p);
  account(b->dev, -b->n);
  delete b;
}
static c10::DataPtr block_ptr(Block* b, void* data) {
  account(b->dev, b->n);
  return {data, b, &free_block, Device(kNPU, b->dev)};
}
struct NpuAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    touch();
    auto host = c10::GetCPUAllocator()->allocate(n);
    void* p = host.get();
    return block_ptr(new Block{std::move(host), c10::Storage(), (int64_t)n, t_current}, p);
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* d, const void* s, size_t n) const override { default_copy_data(d, s, n); }
};
static NpuAllocator g_alloc;
REGISTER_ALLOCATOR(kNPU, &g_alloc)

// Pinned host memory: ordinary host memory whose addresses are remembered.
static std::mutex g_pin_mu;
static std::map<uintptr_t, size_t> g_pinned;
struct PinnedAllocator final : at::HostAllocator {
  static void del(void* p) {
    { std::lock_guard<std::mutex> l(g_pin_mu); g_pinned.erase((uintptr_t)p); }
    std::free(p);
  }
  c10::DataPtr allocate(size_t n) override {
    void* p = nullptr;
    TORCH_CHECK(posix_memalign(&p, 64, n ? n : 1) == 0, "pinned allocation failed");
    { std::lock_guard<std::mutex> l(g_pin_mu); g_pinned[(uintptr_t)p] = n ? n : 1; }
    return {p, p, &del, Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &del; }
  void copy_data(void* d, const void* s, size_t n) const override { default_copy_data(d, s, n); }
  bool record_event(void*, void*, c10::Stream) override { return true; }
  void empty_cache() override {}
  at::HostStats get_stats() override { return {}; }
  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {}
};
static PinnedAllocator g_pinned_alloc;
REGISTER_HOST_ALLOCATOR(kNPU, &g_pinned_alloc)
static bool is_pinned_ptr(const void* p) {
  std::lock_guard<std::mutex> l(g_pin_mu);
  auto it = g_pinned.upper_bound((uintptr_t)p);
  if (it == g_pinned.begin()) return false;
  --it;
  return (uintptr_t)p < it->first + it->second;
}

// ---------------------------------------------------------------- generator
struct NpuGenerator final : c10::GeneratorImpl {
  at::Generator inner;  // the CPU generator the CPU kernels really draw from
  explicit NpuGenerator(DeviceIndex i)
      : c10::GeneratorImpl(Device(kNPU, i), DispatchKeySet(DispatchKey::PrivateUse1)),
        inner(at::detail::createCPUGenerator()) {}
  void set_current_seed(uint64_t s) override { inner.set_current_seed(s); }
  void set_offset(uint64_t o) override { inner.set_offset(o); }
  uint64_t get_offset() const override { return inner.get_offset(); }
  uint64_t current_seed() const override { return inner.current_seed(); }
  uint64_t seed() override { return const_cast<at::Generator&>(inner).seed(); }
  void set_state(const c10::TensorImpl& st) override { inner.unsafeGetGeneratorImpl()->set_state(st); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return inner.unsafeGetGeneratorImpl()->get_state();
  }
  static c10::DeviceType device_type() { return kNPU; }
 private:
  NpuGenerator* clone_impl() const override {
    auto* g = new NpuGenerator(device_.index());
    g->inner = inner.clone();
    return g;
  }
};
static const at::Generator& default_generator(DeviceIndex i) {
  static std::vector<at::Generator> gens = [] {
    std::vector<at::Generator> v;
    for (int k = 0; k < kMaxDevices; ++k) v.push_back(at::make_generator<NpuGenerator>(k));
    return v;
  }();
  return gens.at(i < 0 ? t_current : i);
}
static at::Generator& inner_of(const at::Generator& g) {
  return static_cast<NpuGenerator*>(g.unsafeGetGeneratorImpl())->inner;
}

// ---------------------------------------------------------------- hooks, guard
struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return g_count > 0; }
  bool hasPrimaryContext(DeviceIndex) const override { return g_initialized; }
  void init() const override { touch(); }
  DeviceIndex deviceCount() const override { return g_count; }
  void setCurrentDevice(DeviceIndex i) const override { set_device(i); }
  DeviceIndex getCurrentDevice() const override { return t_current; }
  DeviceIndex exchangeDevice(DeviceIndex i) const override { auto o = t_current; set_device(i); return o; }
  DeviceIndex maybeExchangeDevice(DeviceIndex i) const override {
    auto o = t_current;
    if (i >= 0 && i < g_count) t_current = i;
    return o;
  }
  at::Allocator* getPinnedMemoryAllocator() const override { return &g_pinned_alloc; }
  bool isPinnedPtr(const void* p) const override { return is_pinned_ptr(p); }
  Device getDeviceFromPtr(void*) const override { return Device(kNPU, t_current); }
  const at::Generator& getDefaultGenerator(DeviceIndex i) const override { return default_generator(i); }
  at::Generator getNewGenerator(DeviceIndex i) const override {
    return at::make_generator<NpuGenerator>(i < 0 ? t_current : i);
  }
  void resizePrivateUse1Bytes(const c10::Storage& st, size_t n) const override {
    auto* s = st.unsafeGetStorageImpl();
    auto keep = t_current;
    t_current = s->device().index();
    auto fresh = g_alloc.allocate(n);
    t_current = keep;
    if (s->data()) std::memcpy(fresh.get(), s->data(), std::min(n, s->nbytes()));
    s->set_data_ptr_noswap(std::move(fresh));
    s->set_nbytes(n);
  }
};
struct Guard final : c10::impl::DeviceGuardImplInterface {
  using D = Device;
  using S = c10::Stream;
  c10::DeviceType type() const override { return kNPU; }
  D exchangeDevice(D d) const override { auto o = t_current; set_device(d.index()); return D(kNPU, o); }
  D getDevice() const override { return D(kNPU, t_current); }
  void setDevice(D d) const override { set_device(d.index()); }
  void uncheckedSetDevice(D d) const noexcept override { t_current = d.index(); }
  S getStream(D d) const override { return S(S::DEFAULT, d); }
  S getDefaultStream(D d) const override { return S(S::DEFAULT, d); }
  S getStreamFromGlobalPool(D d, bool) const override { return getNewStream(d, 0); }
  S getNewStream(D d, int) const override {
    static std::atomic<int64_t> id{1};
    return S(S::UNSAFE, d, id++);
  }
  S exchangeStream(S s) const override { return S(S::DEFAULT, s.device()); }
  DeviceIndex deviceCount() const noexcept override { return g_count; }
  void destroyEvent(void* e, const DeviceIndex) const noexcept override { delete (double*)e; }
  void record(void** e, const S&, const DeviceIndex, const c10::EventFlag) const override {
    if (!*e) *e = new double;
    *(double*)*e = std::chrono::duration<double, std::milli>(
        std::chrono::steady_clock::now().time_since_epoch()).count();
  }
  void block(void*, const S&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const S&) const override { return true; }
  void synchronizeStream(const S&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  double elapsedTime(void* a, void* b, const DeviceIndex) const override { return *(double*)b - *(double*)a; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// ---------------------------------------------------------------- test controls
static std::mutex g_log_mu;
static std::map<std::string, int64_t> g_op_log;           // op name -> calls
static std::atomic<bool> g_log_on{false};

// FAKENPU_SATURATE=1: fp16 overflow saturates and raises a sticky flag, as the 910A does
static const bool g_saturate = [] { auto* s = std::getenv("FAKENPU_SATURATE"); return s && *s == '1'; }();
static std::atomic<bool> g_overflow{false};
static void saturate(const Tensor& t) {
  if (!t.defined() || t.scalar_type() != c10::kHalf || at::isfinite(t).all().item<bool>()) return;
  g_overflow = true;
  t.nan_to_num_(0.0, 65504.0, -65504.0);
}

// ---------------------------------------------------------------- aliasing
static Tensor adopt(const Tensor& cpu, Device dev) {  // take a fresh CPU tensor as npu memory
  c10::Storage keep = cpu.storage();
  void* p = keep.mutable_data();
  int64_t n = keep.nbytes();
  auto* b = new Block{c10::DataPtr(), std::move(keep), n, dev.index()};
  c10::Storage st(c10::Storage::use_byte_size_t(), n, block_ptr(b, p), &g_alloc, true);
  auto out = at::detail::make_tensor<c10::TensorImpl>(
      std::move(st), DispatchKeySet(DispatchKey::PrivateUse1), cpu.dtype());
  auto* i = out.unsafeGetTensorImpl();
  i->set_storage_offset(cpu.storage_offset());
  i->set_sizes_and_strides(cpu.sizes(), cpu.strides());
  if (cpu.is_conj()) out._set_conj(true);
  if (cpu.is_neg()) out._set_neg(true);
  return out;
}

struct Lender {  // lends npu tensors to CPU kernels for the length of one call
  struct Loan { Tensor npu, cpu; void* data; };
  std::vector<Loan> loans;
  std::vector<std::pair<c10::StorageImpl*, c10::Storage>> storages;  // npu storage -> cpu storage

  Tensor lend(const Tensor& t) {
    for (auto& l : loans)
      if (l.npu.unsafeGetTensorImpl() == t.unsafeGetTensorImpl()) return l.cpu;
    auto* src = t.storage().unsafeGetStorageImpl();
    c10::Storage st;
    for (auto& p : storages)
      if (p.first == src) st = p.second;
    if (!st) {
      auto* owner = new c10::Storage(t.storage());
      st = c10::Storage(c10::Storage::use_byte_size_t(), src->nbytes(),
                        c10::DataPtr(src->mutable_data(), owner,
                                     [](void* o) { delete static_cast<c10::Storage*>(o); },
                                     Device(c10::kCPU)),
                        c10::GetCPUAllocator(), true);
      storages.emplace_back(src, st);
    }
    auto cpu = at::detail::make_tensor<c10::TensorImpl>(
        std::move(st), DispatchKeySet(DispatchKey::CPU), t.dtype());
    auto* i = cpu.unsafeGetTensorImpl();
    i->set_storage_offset(t.storage_offset());
    i->set_sizes_and_strides(t.sizes(), t.strides());
    if (t.unsafeGetTensorImpl()->is_wrapped_number()) i->set_wrapped_number(true);
    if (t.is_conj()) cpu._set_conj(true);
    if (t.is_neg()) cpu._set_neg(true);
    loans.push_back({t, cpu, src->mutable_data()});
    return cpu;
  }
  void settle() {  // a CPU kernel resized an out= tensor: give the npu tensor the same shape
    for (auto& l : loans) {
      auto* c = l.cpu.unsafeGetTensorImpl();
      auto* n = l.npu.unsafeGetTensorImpl();
      auto* cs = l.cpu.storage().unsafeGetStorageImpl();
      auto* ns = l.npu.storage().unsafeGetStorageImpl();
      if (cs->data() != ns->data() && cs->data() != l.data) {
        auto* b = new Block{c10::DataPtr(), l.cpu.storage(), (int64_t)cs->nbytes(), l.npu.device().index()};
        ns->set_data_ptr_noswap(block_ptr(b, cs->mutable_data()));
        ns->set_nbytes(cs->nbytes());
      }
      if (c->sizes() != n->sizes() || c->strides() != n->strides() ||
          c->storage_offset() != n->storage_offset()) {
        n->set_storage_offset(c->storage_offset());
        n->set_sizes_and_strides(c->sizes(), c->strides());
      }
    }
  }
  Tensor give_back(const Tensor& t, Device dev) {
    if (!t.defined() || !t.is_cpu()) return t;
    for (auto& l : loans)
      if (l.cpu.unsafeGetTensorImpl() == t.unsafeGetTensorImpl()) return l.npu;
    TORCH_CHECK(t.layout() == c10::kStrided, "[fakenpu] non-strided result is not supported on npu");
    auto* s = t.storage().unsafeGetStorageImpl();
    for (auto& p : storages)
      if (p.second.unsafeGetStorageImpl() == s) {  // a view of a lent tensor
        c10::Storage orig;
        for (auto& l : loans)
          if (l.npu.storage().unsafeGetStorageImpl() == p.first) orig = l.npu.storage();
        auto out = at::detail::make_tensor<c10::TensorImpl>(
            std::move(orig), DispatchKeySet(DispatchKey::PrivateUse1), t.dtype());
        auto* i = out.unsafeGetTensorImpl();
        i->set_storage_offset(t.storage_offset());
        i->set_sizes_and_strides(t.sizes(), t.strides());
        if (t.is_conj()) out._set_conj(true);
        if (t.is_neg()) out._set_neg(true);
        return out;
      }
    // _efficientzerotensor has no memory to adopt
    auto out = adopt(t._is_zerotensor() ? at::zeros(t.sizes(), t.options()) : t, dev);
    loans.push_back({out, t, s->mutable_data()});  // the same result returned twice stays one tensor
    return out;
  }
};

// ---------------------------------------------------------------- the fallback
// A few ops take host tensors next to device tensors on every accelerator.
static bool host_args_allowed(const std::string& name) {
  static const std::unordered_set<std::string> ok = {
      "aten::index.Tensor", "aten::index.Tensor_out", "aten::index_put_", "aten::index_put",
      "aten::index_put.out", "aten::_index_put_impl_", "aten::_unsafe_index.Tensor",
      "aten::_unsafe_index_put", "aten::_pad_packed_sequence", "aten::_pack_padded_sequence"};
  return ok.count(name) != 0;
}
struct OpInfo {
  std::string name;
  bool host_ok, seeded_without_gen;
  int gen_arg;
};
static const OpInfo& info(const c10::OperatorHandle& op) {
  static std::mutex mu;
  static std::unordered_map<std::string, OpInfo> cache;
  thread_local std::unordered_map<const void*, const OpInfo*> fast;
  const void* key = &op.schema();
  auto f = fast.find(key);
  if (f != fast.end()) return *f->second;
  std::string n = c10::toString(op.operator_name());
  std::lock_guard<std::mutex> l(mu);
  auto it = cache.find(n);
  if (it == cache.end()) {
    OpInfo x{n, host_args_allowed(n), false, -1};
    const auto& args = op.schema().arguments();
    for (size_t i = 0; i < args.size(); ++i)
      if (args[i].name() == "generator") x.gen_arg = (int)i;
    x.seeded_without_gen = x.gen_arg < 0 && op.hasTag(at::Tag::nondeterministic_seeded);
    it = cache.emplace(n, x).first;
  }
  fast[key] = &it->second;
  return it->second;
}

struct RngSwap {  // ops that draw from the *default* CPU generator: lend them the npu one
  at::Generator cpu, npu;
  Tensor saved;
  RngSwap(const at::Generator& g) : cpu(at::detail::getDefaultCPUGenerator()), npu(inner_of(g)) {
    saved = cpu.get_state();
    cpu.set_state(npu.get_state());
  }
  ~RngSwap() {
    npu.set_state(cpu.get_state());
    cpu.set_state(saved);
  }
};

static void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const OpInfo& oi = info(op);
  const auto& args = op.schema().arguments();
  const size_t n = args.size(), base = stack->size() - n;
  if (g_log_on) {
    std::lock_guard<std::mutex> l(g_log_mu);
    ++g_op_log[oi.name];
  }
  at::AutoDispatchBelowADInplaceOrView below;

  // 1. find the device all tensors must share
  std::optional<Device> dev;
  auto visit = [&](auto&& f) {
    for (size_t i = 0; i < n; ++i) {
      const IValue& v = (*stack)[base + i];
      bool w = args[i].alias_info() && args[i].alias_info()->isWrite();
      if (v.isTensor()) {
        f(v.toTensor(), w);
      } else if (v.isTensorList()) {
        auto l = v.toTensorList();
        for (size_t k = 0; k < l.size(); ++k) { Tensor t = l.get(k); f(t, w); }
      } else if (v.isOptionalTensorList()) {
        auto l = v.toOptionalTensorList();
        for (size_t k = 0; k < l.size(); ++k) { auto t = l.get(k); if (t) f(*t, w); }
      }
    }
  };
  visit([&](const Tensor& t, bool) {
    if (t.defined() && t.device().type() == kNPU && !dev) dev = t.device();
  });
  std::optional<Device> dev_arg;
  for (size_t i = 0; i < n; ++i) {
    const IValue& v = (*stack)[base + i];
    if (v.isDevice() && v.toDevice().type() == kNPU) dev_arg = norm(v.toDevice());
  }
  bool npu_in = dev.has_value();
  if (!dev) dev = dev_arg;
  if (!dev) dev = Device(kNPU, t_current);
  if (npu_in)
    visit([&](const Tensor& t, bool written) {
      if (!t.defined() || t.device() == *dev) return;
      if (t.is_cpu() && t.dim() == 0 && !written) return;        // CPU scalars may mix in
      if (t.is_cpu() && oi.host_ok && !written) return;          // e.g. CPU index tensors
      TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, ",
                  *dev, " and ", t.device(), "! (when checking arguments of ", oi.name, ")");
    });
  if (oi.host_ok && n && (*stack)[base].isTensor() && (*stack)[base].toTensor().is_cpu())
    TORCH_CHECK(false, "indices should be either on cpu or on the same device as the indexed tensor (cpu), but found ",
                *dev, " (", oi.name, ")");

  // 2. lend
  Lender lender;
  auto lend = [&](const Tensor& t) {
    return t.defined() && t.device().type() == kNPU ? lender.lend(t) : t;
  };
  for (size_t i = 0; i < n; ++i) {
    IValue& v = (*stack)[base + i];
    if (v.isTensor()) {
      v = lend(v.toTensor());
    } else if (v.isTensorList()) {
      std::vector<Tensor> out;
      for (const auto& t : v.toTensorVector()) out.push_back(lend(t));
      v = c10::List<Tensor>(std::move(out));
    } else if (v.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> out;
      auto l = v.toOptionalTensorList();
      for (size_t k = 0; k < l.size(); ++k) {
        auto t = l.get(k);
        out.push_back(t ? std::optional<Tensor>(lend(*t)) : std::nullopt);
      }
      v = out;
    } else if (v.isDevice() && v.toDevice().type() == kNPU) {
      v = Device(c10::kCPU);
    } else if ((int)i == oi.gen_arg) {
      if (v.isNone()) {
        v = inner_of(default_generator(dev->index()));
      } else {
        auto g = v.toGenerator();
        TORCH_CHECK(g.device().type() == kNPU, "Expected a 'npu' device type for generator but found '",
                    g.device().type(), "'");
        v = inner_of(g);
      }
    }
  }

  // 3. compute on the CPU
  {
    std::optional<RngSwap> swap;
    if (oi.seeded_without_gen) swap.emplace(default_generator(dev->index()));
    op.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), stack);
  }

  // 4. hand back
  lender.settle();
  const size_t m = op.schema().returns().size(), rbase = stack->size() - m;
  if (C10_UNLIKELY(g_saturate))
    for (size_t i = 0; i < m; ++i) {
      const IValue& v = (*stack)[rbase + i];
      if (v.isTensor()) saturate(v.toTensor());
      else if (v.isTensorList()) for (const auto& t : v.toTensorVector()) saturate(t);
    }
  for (size_t i = 0; i < m; ++i) {
    IValue& v = (*stack)[rbase + i];
    if (v.isTensor()) {
      v = lender.give_back(v.toTensor(), *dev);
    } else if (v.isTensorList()) {
      std::vector<Tensor> out;
      for (const auto& t : v.toTensorVector()) out.push_back(lender.give_back(t, *dev));
      v = c10::List<Tensor>(std::move(out));
    }
  }
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}
TORCH_LIBRARY_IMPL(_, AutogradPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

// ---------------------------------------------------------------- kernels that are not fallbacks
static void check_new(std::optional<c10::Layout> layout, std::optional<bool> pin) {
  TORCH_CHECK(c10::layout_or_default(layout) == c10::kStrided, "[fakenpu] only strided tensors");
  TORCH_CHECK(!c10::pinned_memory_or_default(pin), "Only dense CPU tensors can be pinned");
}
static Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> dtype,
                    std::optional<c10::Layout> layout, std::optional<Device> device,
                    std::optional<bool> pin, std::optional<c10::MemoryFormat> mf) {
  auto t = c10::dtype_or_default(dtype);
  check_new(layout, pin);
  c10::DeviceGuard g(norm(c10::device_or_default(device)));
  return at::detail::empty_generic(size, &g_alloc, DispatchKeySet(DispatchKey::PrivateUse1), t, mf);
}
static Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                            std::optional<c10::ScalarType> dtype, std::optional<c10::Layout> layout,
                            std::optional<Device> device, std::optional<bool> pin) {
  auto t = c10::dtype_or_default(dtype);
  check_new(layout, pin);
  c10::DeviceGuard g(norm(c10::device_or_default(device)));
  return at::detail::empty_strided_generic(size, stride, &g_alloc,
                                           DispatchKeySet(DispatchKey::PrivateUse1), t);
}
static Tensor copy_from(const Tensor& src, const Tensor& dst, bool non_blocking) {
  if (g_log_on) {
    std::lock_guard<std::mutex> l(g_log_mu);
    const char* k = src.device().type() == kNPU ? (dst.device().type() == kNPU ? "copy:d2d" : "copy:d2h")
                                                : "copy:h2d";
    ++g_op_log[k];
  }
  at::AutoDispatchBelowADInplaceOrView below;
  Lender l;
  Tensor s = src.device().type() == kNPU ? l.lend(src) : src;
  Tensor d = dst.device().type() == kNPU ? l.lend(dst) : dst;
  TORCH_CHECK(s.is_cpu() && d.is_cpu(), "[fakenpu] cannot copy between ", src.device(), " and ", dst.device());
  d.copy_(s, non_blocking);
  if (C10_UNLIKELY(g_saturate) && dst.device().type() == kNPU) saturate(d);
  return dst;
}
static Tensor copy_from_and_resize(const Tensor& src, const Tensor& dst) {
  dst.resize_(src.sizes());
  return copy_from(src, dst, false);
}
static at::Scalar local_scalar(const Tensor& t) {
  if (g_log_on) {
    std::lock_guard<std::mutex> l(g_log_mu);
    ++g_op_log["scalar"];
  }
  at::AutoDispatchBelowADInplaceOrView below;
  Lender l;
  return at::_local_scalar_dense(l.lend(t));
}
static Tensor& set_storage(Tensor& self, at::Storage st, int64_t off, c10::IntArrayRef size, c10::IntArrayRef stride) {
  at::native::checkSetStorage(self, st, off, size, stride, false);
  self.unsafeGetTensorImpl()->set_storage_offset(off);
  std::vector<int64_t> s(stride.begin(), stride.end());
  if (stride.data() == nullptr || (s.empty() && !size.empty())) {
    s.assign(size.size(), 1);
    for (int64_t i = (int64_t)size.size() - 2; i >= 0; --i) s[i] = s[i + 1] * std::max<int64_t>(size[i + 1], 1);
  }
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, s);
  size_t need = at::detail::computeStorageNbytes(size, s, self.dtype().itemsize(), off);
  if (need > self.storage().nbytes()) at::detail::getPrivateUse1Hooks().resizePrivateUse1Bytes(self.storage(), need);
  return self;
}
static Tensor& set_src_storage(Tensor& self, at::Storage st) {
  int64_t n = st.nbytes() / self.dtype().itemsize();
  return set_storage(self, st, 0, {n}, {1});
}
static Tensor& set_empty(Tensor& self) {
  c10::Storage st(c10::Storage::use_byte_size_t(), 0, g_alloc.allocate(0), &g_alloc, true);
  return set_storage(self, st, 0, {0}, {1});
}
static Tensor view_(const Tensor& self, c10::SymIntArrayRef size) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}

// Like torch_npu: model.to("npu") keeps each Parameter's identity (it is .data that moves).
static bool compatible_shallow_copy(const Tensor& a, const Tensor& b) {
  auto dense = [](const Tensor& t) {
    return t.layout() == c10::kStrided && (t.is_cpu() || t.device().type() == kNPU);
  };
  return dense(a) && dense(b);
}

#define BOXED(name) m.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>())
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &view_);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("resize_", &at::native::resize_);
  m.impl("set_.source_Tensor", &at::native::set_tensor_);
  m.impl("set_.source_Storage", &set_src_storage);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_", &set_empty);
  m.impl("_has_compatible_shallow_copy_type", &compatible_shallow_copy);
  // composite ops that would pick a backend by device type: hand them over whole
  BOXED("convolution");
  BOXED("convolution_backward");
}

// copy_from resolves conj/neg itself; the generic conj/neg fallback would recurse through clone
TORCH_LIBRARY_IMPL(aten, Conjugate, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, Negative, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }

// ---------------------------------------------------------------- autocast
using namespace at::autocast;
static Tensor bce_banned(const Tensor&, const Tensor&, const std::optional<Tensor>&, int64_t) {
  TORCH_CHECK(false, "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast.");
}
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }
#define LOW(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define F32(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define F32O(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
#define PROM(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  AT_FORALL_LOWER_PRECISION_FP(LOW)
  AT_FORALL_FP32(F32)
  AT_FORALL_FP32_SET_OPT_DTYPE(F32O)
  AT_FORALL_PROMOTE(PROM)
  m.impl("binary_cross_entropy", &bce_banned);
}

}  // namespace fakenpu

// ---------------------------------------------------------------- python
namespace py = pybind11;
using namespace fakenpu;
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  m.def("device_count", [] { return g_count; });
  m.def("current_device", [] { return (int)t_current; });
  m.def("set_device", [](int i) { touch(); set_device((DeviceIndex)i); });
  m.def("init", [] { touch(); });
  m.def("is_initialized", [] { return g_initialized.load(); });
  m.def("in_bad_fork", [] { return g_bad_fork.load(); });
  m.def("default_generator", [](int i) { return default_generator((DeviceIndex)i); });
  m.def("cpu_alias", [](const Tensor& t) {
    Lender l;
    return t.device().type() == kNPU ? l.lend(t.detach()) : t;
  });
  m.def("adopt", [](const Tensor& t, int dev) { return adopt(t, Device(kNPU, (DeviceIndex)dev)); });
  m.def("memory", [](int i) {
    return std::make_tuple(g_stats[i].cur.load(), g_stats[i].peak.load(), g_stats[i].allocs.load());
  });
  m.def("reset_peak", [](int i) { g_stats[i].peak = g_stats[i].cur.load(); });
  m.def("saturates", [] { return g_saturate; });
  m.def("overflow", [] { return g_overflow.load(); });
  m.def("clear_overflow", [] { g_overflow = false; });
  m.def("storage_numel", [](const Tensor& t) { return t.storage().nbytes() / t.dtype().itemsize(); });
  // apex's combine_tensors: make dst's storage point into src's (src must outlive dst)
  m.def("change_data_ptr", [](const Tensor& dst, const Tensor& src, int64_t offset) {
    TORCH_CHECK(offset >= 0 && dst.scalar_type() == src.scalar_type() &&
                (size_t)(offset + dst.numel()) * dst.element_size() <= src.storage().nbytes(), "change_data_ptr: bad arguments");
    auto* owner = new c10::Storage(src.storage());
    char* p = static_cast<char*>(src.storage().mutable_data()) + offset * src.element_size();
    dst.storage().set_data_ptr_noswap(c10::DataPtr(p, owner, [](void* o) { delete static_cast<c10::Storage*>(o); }, dst.device()));
  });
  m.def("log_ops", [](bool on) {
    std::lock_guard<std::mutex> l(g_log_mu);
    g_op_log.clear();
    g_log_on = on;
  });
  m.def("op_log", [] {
    std::lock_guard<std::mutex> l(g_log_mu);
    return g_op_log;
  });
}
