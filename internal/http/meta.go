package http

import (
	"fmt"
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/registry"
	"github.com/fewbit/fewbit/internal/telemetry"
)

// Answers of the Open Inference Protocol.
type (
	serverMetadata struct {
		Name       string   `json:"name"`
		Version    string   `json:"version"`
		Extensions []string `json:"extensions"`
	}
	modelMetadata struct {
		Name     string            `json:"name"`
		Versions []string          `json:"versions"`
		Platform string            `json:"platform"`
		Engine   *engine.Placement `json:"engine,omitempty" doc:"which engine answers, and why; absent where there is only ONNX Runtime on the CPU"`
		Inputs   []tensorMetadata  `json:"inputs"`
		Outputs  []tensorMetadata  `json:"outputs"`
	}
	tensorMetadata struct {
		Name     string  `json:"name"`
		Datatype string  `json:"datatype"`
		Shape    []int64 `json:"shape" doc:"-1 for a variable dimension"`
	}
	modelNames struct {
		Models []string `json:"models"`
	}
	health struct {
		Live  bool   `json:"live"`
		Ready bool   `json:"ready"`
		Name  string `json:"name,omitempty" doc:"the model asked for"`
	}
	indexRequest struct {
		Ready bool `json:"ready,omitempty" doc:"only models that are READY"`
	}
	modelConfig struct {
		Name         string         `json:"name"`
		Platform     string         `json:"platform"`
		Backend      string         `json:"backend"`
		MaxBatchSize int            `json:"max_batch_size" doc:"0: dims hold the batch dimension"`
		Input        []tensorConfig `json:"input"`
		Output       []tensorConfig `json:"output"`
	}
	tensorConfig struct {
		Name     string  `json:"name"`
		DataType string  `json:"data_type"`
		Dims     []int64 `json:"dims"`
	}
)

const platform = "onnxruntime_onnx"

const serverName = "fewbit"

// extensions lists what is implemented, by the names of the protocol.
var extensions = []string{"model_repository", "model_repository(unload_dependents)", "model_configuration", "statistics", "logging", "trace", "binary_tensor_data", "parameters"}

func (s *Server) serverMeta(c *gin.Context) error {
	return s.reply(c, http.StatusOK, serverMetadata{serverName, s.cfg.Version, extensions})
}

func (s *Server) live(c *gin.Context) error {
	return s.reply(c, http.StatusOK, health{Live: true, Ready: s.isReady()})
}

// isReady: the server is not shutting down and no model that it starts with is
// on its way in. One that a request has brought up again does not count.
func (s *Server) isReady() bool {
	if s.draining.Load() {
		return false
	}
	for _, m := range s.cfg.Models.List() {
		if m.State == StateLoading && m.Default && !m.Lazy {
			return false
		}
	}
	return true
}

func (s *Server) ready(c *gin.Context) error {
	h := health{Live: true, Ready: s.isReady()}
	status := http.StatusOK
	if !h.Ready {
		status = http.StatusServiceUnavailable
		c.Header("Retry-After", "1")
	}
	return s.reply(c, status, h)
}

// modelReady answers 200 when requests for the model would be served, be it that
// the next one loads it; 404 for unknown models, 503 for those that are not
// served.
func (s *Server) modelReady(c *gin.Context) error {
	name, version, err := modelParams(c)
	if err != nil {
		return err
	}
	ready, err := s.Ready(name, version)
	if err != nil {
		return err
	}
	if ready {
		return s.reply(c, http.StatusOK, health{Live: true, Ready: true, Name: name})
	}
	c.Header("Retry-After", "1")
	return s.reply(c, http.StatusServiceUnavailable, health{Live: true, Name: name})
}

// infosOf returns the lines of the index for a model, or one version of it.
func (s *Server) infosOf(name, version string) ([]ModelInfo, error) {
	var infos []ModelInfo
	known := false
	for _, m := range s.cfg.Models.List() {
		if m.Name != name {
			continue
		}
		known = true
		if version == "" || m.Version == version {
			infos = append(infos, m)
		}
	}
	switch {
	case !known:
		return nil, fmt.Errorf("%w: there is no model %q", registry.ErrNotFound, name)
	case len(infos) == 0:
		return nil, fmt.Errorf("%w: model %q has no version %q", registry.ErrNotFound, name, version)
	}
	return infos, nil
}

func (s *Server) modelList(c *gin.Context) error {
	names := modelNames{Models: []string{}}
	for _, m := range s.cfg.Models.List() {
		if n := len(names.Models); n == 0 || names.Models[n-1] != m.Name {
			names.Models = append(names.Models, m.Name)
		}
	}
	return s.reply(c, http.StatusOK, names)
}

func (s *Server) modelMeta(c *gin.Context) error {
	lease, name, version, err := s.acquire(c)
	if err != nil {
		return err
	}
	defer lease.Release()
	spec := lease.Spec()
	m := modelMetadata{Name: name, Versions: []string{}, Platform: platform, Inputs: tensorsOf(spec.Inputs), Outputs: tensorsOf(spec.Outputs)}
	if at, ok := lease.Placement(); ok {
		m.Engine = &at
	}
	if version != "" {
		m.Versions = append(m.Versions, version)
	} else {
		for _, i := range s.cfg.Models.List() {
			if i.Name == name {
				m.Versions = append(m.Versions, i.Version)
			}
		}
	}
	return s.reply(c, http.StatusOK, m)
}

func tensorsOf(ios []engine.IO) []tensorMetadata {
	ts := make([]tensorMetadata, len(ios))
	for i, io := range ios {
		ts[i] = tensorMetadata{io.Name, io.Type.String(), append([]int64{}, io.Dims...)}
	}
	return ts
}

func (s *Server) modelConfig(c *gin.Context) error {
	lease, name, _, err := s.acquire(c)
	if err != nil {
		return err
	}
	defer lease.Release()
	configs := func(ios []engine.IO) []tensorConfig {
		ts := make([]tensorConfig, len(ios))
		for i, io := range ios {
			kind := io.Type.String()
			if kind == "BYTES" {
				kind = "STRING" // the protocol's configuration has its own name for it
			}
			ts[i] = tensorConfig{io.Name, "TYPE_" + kind, append([]int64{}, io.Dims...)}
		}
		return ts
	}
	spec := lease.Spec()
	return s.reply(c, http.StatusOK, modelConfig{Name: name, Platform: platform, Backend: backend, Input: configs(spec.Inputs), Output: configs(spec.Outputs)})
}

func (s *Server) modelStats(c *gin.Context) error {
	name, version := "", ""
	if c.Param("model") != "" {
		var err error
		if name, version, err = modelParams(c); err != nil {
			return err
		}
	}
	stats, err := s.Statistics(name, version)
	if err != nil {
		return err
	}
	return s.reply(c, http.StatusOK, statsAnswer{Models: stats})
}

func (s *Server) repositoryIndex(c *gin.Context) error {
	var req indexRequest
	if err := s.decode(c, &req, true); err != nil {
		return err
	}
	infos := []ModelInfo{}
	for _, m := range s.cfg.Models.List() {
		if !req.Ready || m.State == StateReady {
			infos = append(infos, m)
		}
	}
	return s.reply(c, http.StatusOK, infos)
}

func (s *Server) telemetrySnapshot(c *gin.Context) error {
	s.settle()
	snap := s.cfg.Telemetry.Snapshot()
	snap.Engines = s.placements()
	if b, ok := s.cfg.Models.(Budget); ok {
		m := b.Memory()
		snap.ModelMemory = &m
	}
	return s.reply(c, http.StatusOK, snap)
}

// placements says which engine answers for each version that is loaded.
func (s *Server) placements() []telemetry.ModelEngine {
	var all []telemetry.ModelEngine
	for _, m := range s.cfg.Models.List() {
		if m.Engine != nil {
			all = append(all, telemetry.ModelEngine{Name: m.Name, Version: m.Version, At: *m.Engine})
		}
	}
	return all
}

func (s *Server) prometheus(c *gin.Context) error {
	s.settle()
	s.metrics.handler.ServeHTTP(c.Writer, c.Request)
	return nil
}

func (s *Server) openapiDoc(c *gin.Context) error {
	doc := s.openapi
	if listenerOf(c.Request.Context()).admin {
		doc = s.adminAPI
	}
	s.write(c, http.StatusOK, typeJSON, doc)
	return nil
}
