package http

import (
	"net/http"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/fewbit/fewbit/internal/telemetry"
)

// metrics are the server's Prometheus metrics, in a registry of their own.
// Names that begin with nv_ mean what Triton's mean.
type metrics struct {
	handler  http.Handler
	panics   prometheus.Counter
	refused  *prometheus.CounterVec
	requests *prometheus.CounterVec
	latency  *prometheus.HistogramVec
}

// latencyBuckets serve scrapers without native histograms, in seconds.
var latencyBuckets = []float64{.0005, .001, .0025, .005, .01, .02, .03, .04, .05, .075, .1, .15, .25, .5, 1, 2.5, 10}

func newMetrics(s *Server) *metrics {
	m := &metrics{
		panics: prometheus.NewCounter(prometheus.CounterOpts{Name: "fewbit_http_panics_total", Help: "Requests that ended in a panic and were answered with 500."}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "fewbit_refused_total",
			Help: "Calls that were not let in: key, role, attempts (too many unknown keys), rate, off (admin routes)."}, []string{"reason"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "fewbit_http_requests_total",
			Help: "Requests by route, method and status."}, []string{"route", "method", "code"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "fewbit_inference_phase_duration_seconds",
			Help:    "Time of answered inference requests by phase; total runs from arrival to the last byte.",
			Buckets: latencyBuckets, NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 160,
			NativeHistogramMinResetDuration: time.Hour}, []string{"model", "version", "phase"}),
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(m.panics, m.refused, m.requests, m.latency, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &tritonCollector{s})
	m.handler = promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 4, ErrorHandling: promhttp.ContinueOnError})
	return m
}

// request counts an answered request of any route.
func (m *metrics) request(c *gin.Context) {
	path := c.FullPath()
	if path == "" {
		path = "none"
	}
	method := c.Request.Method
	switch method {
	case "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH":
	default:
		method = "other" // a client must not make labels
	}
	m.requests.WithLabelValues(path, method, strconv.Itoa(c.Writer.Status())).Inc()
}

// succeeded observes an answered inference request.
func (m *metrics) succeeded(st *modelStats, t *timing) {
	obs := st.observers.Load()
	if obs == nil {
		obs = new([telemetry.Phases]prometheus.Observer)
		for p := range obs {
			obs[p] = m.latency.WithLabelValues(st.name, st.version, telemetry.Phase(p).String())
		}
		st.observers.Store(obs)
	}
	for p, d := range t.phases {
		obs[p].Observe(d.Seconds())
	}
}

// forget drops a version's series.
func (m *metrics) forget(st *modelStats) {
	for p := range telemetry.Phases {
		m.latency.DeleteLabelValues(st.name, st.version, telemetry.Phase(p).String())
	}
}

// tritonCollector reads the counters and the sensors when it is scraped.
type tritonCollector struct{ s *Server }

var modelLabels = []string{"model", "version"}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	descSuccess = desc("nv_inference_request_success", "Successful inference requests.", modelLabels...)
	descFailure = desc("nv_inference_request_failure", "Failed inference requests.", "model", "version", "reason")
	descCount   = desc("nv_inference_count", "Inferences performed: every sample of a batch counts.", modelLabels...)
	descExec    = desc("nv_inference_exec_count", "Model executions performed.", modelLabels...)
	descPending = desc("nv_inference_pending_request_count", "Requests admitted and not yet answered.", modelLabels...)
	descTarget  = desc("fewbit_latency_target_seconds", "Latency target of the model.", modelLabels...)
	descInfer   = map[int]*prometheus.Desc{
		tookSuccess: desc("nv_inference_request_duration_us", "Cumulative time of requests from arrival to the last byte.", modelLabels...),
		tookQueue:   desc("nv_inference_queue_duration_us", "Cumulative time waiting for the model.", modelLabels...),
		tookInput:   desc("nv_inference_compute_input_duration_us", "Cumulative time reading and preparing inputs.", modelLabels...),
		tookInfer:   desc("nv_inference_compute_infer_duration_us", "Cumulative time in the model.", modelLabels...),
		tookOutput:  desc("nv_inference_compute_output_duration_us", "Cumulative time encoding and writing outputs.", modelLabels...),
	}
	descGPU = []struct {
		desc  *prometheus.Desc
		kind  prometheus.ValueType
		value func(*telemetry.GPU) *float64
	}{
		{desc("nv_gpu_power_usage", "GPU board power in watts.", "gpu_uuid"), prometheus.GaugeValue, func(g *telemetry.GPU) *float64 { return g.PowerW }},
		{desc("nv_gpu_power_limit", "GPU power limit in watts.", "gpu_uuid"), prometheus.GaugeValue, func(g *telemetry.GPU) *float64 { return g.PowerLimitW }},
		{desc("nv_energy_consumption", "GPU board energy in joules since the driver was loaded.", "gpu_uuid"), prometheus.CounterValue, func(g *telemetry.GPU) *float64 { return g.EnergyJ }},
		{desc("nv_gpu_utilization", "Share of time with a kernel running, 0 to 1.", "gpu_uuid"), prometheus.GaugeValue, func(g *telemetry.GPU) *float64 { return g.Utilization }},
		{desc("nv_gpu_memory_total_bytes", "GPU memory.", "gpu_uuid"), prometheus.GaugeValue, func(g *telemetry.GPU) *float64 { return g.MemoryTotalBytes }},
		{desc("nv_gpu_memory_used_bytes", "GPU memory in use.", "gpu_uuid"), prometheus.GaugeValue, func(g *telemetry.GPU) *float64 { return g.MemoryUsedBytes }},
		{desc("fewbit_gpu_temperature_celsius", "GPU temperature.", "gpu_uuid"), prometheus.GaugeValue, func(g *telemetry.GPU) *float64 { return g.TemperatureC }},
	}
	descBudget    = desc("fewbit_model_memory_budget_bytes", "Memory that all models together may take; 0 is unbounded.")
	descUsed      = desc("fewbit_model_memory_used_bytes", "Memory charged for the models that are loaded.")
	descMemory    = desc("fewbit_model_memory_bytes", "Memory charged for a loaded version.", modelLabels...)
	descSwapP99   = desc("fewbit_model_swap_p99_seconds", "99th percentile of requests through the last change of the model's default version.", "model")
	descSwapFail  = desc("fewbit_model_swap_failed_requests", "Requests that failed through the last change of the model's default version.", "model")
	descLoads     = desc("fewbit_model_loads_total", "Versions loaded.")
	descEvicted   = desc("fewbit_model_evictions_total", "Versions unloaded to make room for others.")
	descEngine    = desc("fewbit_engine_requests_total", "Requests that the GPU and the CPU answered.", "model", "version", "engine")
	descJoules    = desc("fewbit_model_gpu_energy_joules_total", "Energy of the GPUs while a version ran there, idle time left out.", modelLabels...)
	descGPURuns   = desc("fewbit_model_gpu_energy_requests_total", "Requests that this energy answered.", modelLabels...)
	descCPUJoules = desc("fewbit_model_cpu_energy_joules_total", "Energy of the processor packages (RAPL) while a version ran on the CPU, all that they did at that time included.", modelLabels...)
	descCPURuns   = desc("fewbit_model_cpu_energy_requests_total", "Requests that this energy answered.", modelLabels...)
	descCPUPower  = desc("fewbit_cpu_package_power_watts", "Power of all processor packages (RAPL).")
	descCPUTemp   = desc("fewbit_cpu_package_temperature_celsius", "Temperature of the hottest processor package.")
)

// Describe sends nothing: which models there are is only known when scraped.
func (t *tritonCollector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (t *tritonCollector) Collect(ch chan<- prometheus.Metric) {
	count := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, m := range t.s.stats.all() {
		count(descSuccess, float64(m.durations[tookSuccess].count.Load()), m.name, m.version)
		count(descCount, float64(m.samples.Load()), m.name, m.version)
		count(descExec, float64(m.runs.Load()), m.name, m.version)
		for r := range m.failures {
			count(descFailure, float64(m.failures[r].Load()), m.name, m.version, failureNames[r])
		}
		if e := t.s.cfg.Telemetry.Energy().Model(m.name, m.version); e != nil {
			count(descJoules, e.Joules, m.name, m.version)
			count(descGPURuns, float64(e.Requests), m.name, m.version)
		}
		if e := t.s.cfg.Telemetry.CPUEnergy().Model(m.name, m.version); e != nil {
			count(descCPUJoules, e.Joules, m.name, m.version)
			count(descCPURuns, float64(e.Requests), m.name, m.version)
		}
		gauge(descPending, float64(m.admitted.Load()), m.name, m.version)
		gauge(descTarget, m.latency.Target().Seconds(), m.name, m.version)
		for kind, d := range descInfer {
			count(d, float64(m.durations[kind].ns.Load()/1000), m.name, m.version)
		}
	}
	for _, m := range t.s.cfg.Models.List() {
		if m.Memory > 0 {
			gauge(descMemory, float64(m.Memory), m.Name, m.Version)
		}
		if m.Engine != nil {
			count(descEngine, float64(m.Engine.GPU), m.Name, m.Version, "gpu")
			count(descEngine, float64(m.Engine.CPU), m.Name, m.Version, "cpu")
		}
	}
	last := map[string]telemetry.Swap{}
	for _, w := range t.s.cfg.Telemetry.Swaps() {
		last[w.Name] = w
	}
	for name, w := range last {
		if w.Latencies.P99 != nil {
			gauge(descSwapP99, *w.Latencies.P99/1000, name)
		}
		gauge(descSwapFail, float64(w.Failed), name)
	}
	if b, ok := t.s.cfg.Models.(Budget); ok {
		m := b.Memory()
		gauge(descBudget, float64(m.BudgetBytes))
		gauge(descUsed, float64(m.UsedBytes))
		count(descLoads, float64(m.Loads))
		count(descEvicted, float64(m.Evictions))
	}
	gpus, cpu := t.s.cfg.Telemetry.Sensors()
	for i := range gpus {
		for _, d := range descGPU {
			if v := d.value(&gpus[i]); v != nil {
				ch <- prometheus.MustNewConstMetric(d.desc, d.kind, *v, gpus[i].UUID)
			}
		}
	}
	if cpu.PowerW != nil {
		gauge(descCPUPower, *cpu.PowerW)
	}
	if cpu.TemperatureC != nil {
		gauge(descCPUTemp, *cpu.TemperatureC)
	}
}
