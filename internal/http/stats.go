package http

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fewbit/fewbit/internal/telemetry"
)

// statistics counts the requests of every model version that has had any.
type statistics struct {
	cfg     *Config
	metrics *metrics // which has series of each version too

	mu     sync.RWMutex // guards models
	models map[versionKey]*modelStats
}

type versionKey struct{ name, version string }

func newStatistics(cfg *Config, m *metrics) *statistics {
	return &statistics{cfg: cfg, metrics: m, models: map[versionKey]*modelStats{}}
}

// modelStats are one version's counters and its bounds on concurrency.
type modelStats struct {
	name, version string
	latency       *telemetry.Latency
	observers     atomic.Pointer[[telemetry.Phases]prometheus.Observer]

	admitted atomic.Int64 // requests between admission and their end
	limit    int64
	lengths  lengths // of the requests' bodies

	last      atomic.Int64 // Unix milliseconds of the last inference
	samples   atomic.Uint64
	runs      atomic.Uint64
	durations [durationKinds]duration
	failures  [failureReasons]atomic.Uint64

	mu      sync.Mutex // guards batches
	batches map[int64]*batchStats
}

// duration is a count and a sum (Triton's StatisticDuration).
type duration struct{ count, ns atomic.Uint64 }

func (d *duration) add(t time.Duration) {
	d.count.Add(1)
	d.ns.Add(uint64(max(t, 0)))
}

const (
	tookSuccess = iota
	tookFail
	tookQueue
	tookInput
	tookInfer
	tookOutput
	durationKinds
)

// Reasons of failure, as Triton names them in nv_inference_request_failure.
const (
	failRejected = iota // refused before it ran: bad input, or no room
	failCanceled        // the client left
	failBackend         // the engine failed
	failOther           // deadline and the rest
	failureReasons
)

var failureNames = [failureReasons]string{"REJECTED", "CANCELED", "BACKEND", "OTHER"}

// batchStats are the counters of one batch size.
type batchStats struct {
	count                uint64
	input, infer, output time.Duration
}

// of returns the counters of a leased version.
func (s *statistics) of(l Lease) *modelStats {
	k := versionKey{l.Name(), l.Version()}
	s.mu.RLock()
	m := s.models[k]
	s.mu.RUnlock()
	if m != nil {
		return m
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m = s.models[k]; m != nil {
		return m
	}
	if len(s.models) >= MaxModelsCounted {
		s.forgetOldest()
	}
	target := l.Target()
	if target <= 0 {
		target = DefaultTarget
	}
	m = &modelStats{
		name: k.name, version: k.version,
		latency: s.cfg.Telemetry.Model(k.name, k.version, target),
		limit:   int64(s.cfg.MaxInFlight),
		batches: map[int64]*batchStats{},
	}
	s.models[k] = m
	return m
}

// forgetOldest drops the version whose last inference lies furthest back.
func (s *statistics) forgetOldest() {
	var oldest *modelStats
	for _, m := range s.models {
		if m.admitted.Load() == 0 && (oldest == nil || m.last.Load() < oldest.last.Load()) {
			oldest = m
		}
	}
	if oldest != nil {
		delete(s.models, versionKey{oldest.name, oldest.version})
		s.cfg.Telemetry.Forget(oldest.name, oldest.version)
		s.metrics.forget(oldest)
	}
}

// all returns the counters, by name and version.
func (s *statistics) all() []*modelStats {
	s.mu.RLock()
	ms := make([]*modelStats, 0, len(s.models))
	for _, m := range s.models {
		ms = append(ms, m)
	}
	s.mu.RUnlock()
	slices.SortFunc(ms, func(a, b *modelStats) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(len(a.version), len(b.version)), cmp.Compare(a.version, b.version))
	})
	return ms
}

// admit takes a place among the requests in flight; release gives it back.
func (m *modelStats) admit() error {
	if m.admitted.Add(1) > m.limit {
		m.admitted.Add(-1)
		return m.busy()
	}
	return nil
}

// room refuses where admit would.
func (m *modelStats) room() error {
	if m.admitted.Load() >= m.limit {
		return m.busy()
	}
	return nil
}

func (m *modelStats) busy() error {
	return busyf("model %s has %d requests in flight already; retry later", m.name, m.limit)
}

func (m *modelStats) release() { m.admitted.Add(-1) }

// succeeded counts an answered request, and its run.
func (m *modelStats) succeeded(now time.Time, t *timing) {
	d := t.phases
	m.last.Store(now.UnixMilli())
	m.samples.Add(uint64(max(t.rows, 1)))
	m.durations[tookSuccess].add(d[telemetry.Total])
	m.durations[tookQueue].add(d[telemetry.Queue])
	m.durations[tookInput].add(d[telemetry.Prepare])
	m.durations[tookInfer].add(d[telemetry.Infer])
	m.durations[tookOutput].add(d[telemetry.Finish])
	m.latency.Observe(now, d)
	if !t.leads {
		return
	}
	m.runs.Add(1)
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.batches[t.batch]
	if b == nil {
		if len(m.batches) >= MaxBatchSizesCounted {
			return
		}
		b = &batchStats{}
		m.batches[t.batch] = b
	}
	b.count++
	b.input += d[telemetry.Prepare]
	b.infer += d[telemetry.Infer]
	b.output += d[telemetry.Finish]
}

func (m *modelStats) failed(reason int, took time.Duration) {
	m.failures[reason].Add(1)
	m.durations[tookFail].add(took)
}

// settleTime bounds settle: a client that reads its answer slowly must not hold
// up statistics.
const settleTime = 20 * time.Millisecond

// settle waits until the requests whose answers have left are counted, so that
// a client that asks for statistics after an answer finds it counted.
func (s *Server) settle() {
	want := s.answered.Load()
	for end := time.Now().Add(settleTime); s.accounted.Load() < want && time.Now().Before(end); {
		time.Sleep(100 * time.Microsecond)
	}
}

// The statistics extension of the Open Inference Protocol, in Triton's form.
type (
	statsAnswer struct {
		Models []modelStatsJSON `json:"model_stats"`
	}
	modelStatsJSON struct {
		Name           string        `json:"name"`
		Version        string        `json:"version"`
		LastInference  int64         `json:"last_inference" doc:"milliseconds since 1970, 0 for never"`
		InferenceCount uint64        `json:"inference_count" doc:"samples answered"`
		ExecutionCount uint64        `json:"execution_count" doc:"runs of the model"`
		Inference      inferenceJSON `json:"inference_stats"`
		Batches        []batchJSON   `json:"batch_stats"`
		Memory         []memoryJSON  `json:"memory_usage"`
	}
	inferenceJSON struct {
		Success   durationJSON `json:"success"`
		Fail      durationJSON `json:"fail"`
		Queue     durationJSON `json:"queue"`
		Input     durationJSON `json:"compute_input"`
		Infer     durationJSON `json:"compute_infer"`
		Output    durationJSON `json:"compute_output"`
		CacheHit  durationJSON `json:"cache_hit"`
		CacheMiss durationJSON `json:"cache_miss"`
	}
	durationJSON struct {
		Count uint64 `json:"count"`
		NS    uint64 `json:"ns"`
	}
	batchJSON struct {
		Size   int64        `json:"batch_size"`
		Input  durationJSON `json:"compute_input"`
		Infer  durationJSON `json:"compute_infer"`
		Output durationJSON `json:"compute_output"`
	}
	memoryJSON struct {
		Type  string `json:"type"`
		ID    int64  `json:"id"`
		Bytes uint64 `json:"byte_size"`
	}
)

func (d *duration) json() durationJSON { return durationJSON{d.count.Load(), d.ns.Load()} }

// statsOf words the counters of a version that may have had no request yet.
func (s *statistics) statsOf(name, version string) modelStatsJSON {
	s.mu.RLock()
	m := s.models[versionKey{name, version}]
	s.mu.RUnlock()
	j := modelStatsJSON{Name: name, Version: version, Batches: []batchJSON{}, Memory: []memoryJSON{}}
	if m == nil {
		return j
	}
	j.LastInference, j.InferenceCount, j.ExecutionCount = m.last.Load(), m.samples.Load(), m.runs.Load()
	j.Inference = inferenceJSON{
		Success: m.durations[tookSuccess].json(), Fail: m.durations[tookFail].json(), Queue: m.durations[tookQueue].json(),
		Input: m.durations[tookInput].json(), Infer: m.durations[tookInfer].json(), Output: m.durations[tookOutput].json(),
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for size, b := range m.batches {
		j.Batches = append(j.Batches, batchJSON{size, durationJSON{b.count, uint64(b.input)}, durationJSON{b.count, uint64(b.infer)}, durationJSON{b.count, uint64(b.output)}})
	}
	slices.SortFunc(j.Batches, func(a, b batchJSON) int { return cmp.Compare(a.Size, b.Size) })
	return j
}
