package http

import (
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/rollout/capture"
	"github.com/fewbit/fewbit/internal/telemetry"
)

// Groups of routes in openapi.json.
const (
	tagProtocol = "Open Inference Protocol"
	tagTasks    = "Tasks"
	tagJobs     = "Quantization jobs"
	tagUploads  = "Models and datasets"
	tagOperate  = "Operation"
)

// The bodies of an inference request and answer as they are documented; the
// code reads and writes them without building these.
type (
	inferRequestDoc struct {
		ID         string           `json:"id,omitempty"`
		Parameters inferParamsDoc   `json:"parameters,omitempty"`
		Inputs     []inferInputDoc  `json:"inputs"`
		Outputs    []inferOutputDoc `json:"outputs,omitempty" doc:"all outputs when absent"`
	}
	inferParamsDoc struct {
		Timeout int64 `json:"timeout,omitempty" doc:"microseconds until the request is given up with 503"`
		Binary  bool  `json:"binary_data_output,omitempty" doc:"answer with binary tensors"`
	}
	inferInputDoc struct {
		Name       string         `json:"name"`
		Shape      []int64        `json:"shape"`
		Datatype   string         `json:"datatype" doc:"BOOL, UINT8..UINT64, INT8..INT64, FP16, BF16, FP32, FP64 or BYTES; FP16 and BF16 only as binary data"`
		Parameters map[string]any `json:"parameters,omitempty" doc:"binary_data_size: bytes of this tensor after the JSON"`
		Data       []any          `json:"data,omitempty" doc:"row-major elements, flat or nested like the shape"`
	}
	inferOutputDoc struct {
		Name       string         `json:"name"`
		Parameters map[string]any `json:"parameters,omitempty" doc:"binary_data: answer with a binary tensor"`
	}
	inferAnswerDoc struct {
		Model   string          `json:"model_name"`
		Version string          `json:"model_version"`
		ID      string          `json:"id,omitempty"`
		Outputs []inferInputDoc `json:"outputs"`
	}
	anyObject      map[string]any
	loadRequestDoc struct {
		Parameters map[string]any `json:"parameters,omitempty" doc:"config: Triton's configuration as a string of JSON; file:VERSION/NAME: a file in base64"`
	}
)

// routes is the table of everything this server answers.
func (s *Server) routes() []route {
	const v2, model, version = "/v2", "/v2/models/:model", "/v2/models/:model/versions/:version"
	infer := func(path string) route {
		return route{method: "POST", path: path + "/infer", handler: s.infer, tag: tagProtocol,
			summary: "Run the model on tensors in JSON, in binary after JSON, or as one raw body",
			query: []parameter{{headerLength, "bytes of JSON in front of the binary tensors; 0 for a raw body", true},
				{headerTimeout, "microseconds until the request is given up with 503, as the parameter timeout; the shorter one counts. With it a request that would be answered too late is refused before its body is read", true},
				{"Content-Encoding", "gzip or deflate; lengths are those after decoding", true}},
			body: inferRequestDoc{}, answer: inferAnswerDoc{}, limit: s.cfg.MaxInferBody, fails: []int{400, 404, 408, 413, 415, 422, 501, 503}}
	}
	get := func(path string, h func(*gin.Context) error, tag, summary string, answer any, fails ...int) route {
		return route{method: "GET", path: path, handler: h, tag: tag, summary: summary, answer: answer, fails: fails}
	}
	tei := func(path string, h func(*gin.Context) error, summary string, body, answer any) route {
		return route{method: "POST", path: path, handler: h, words: s.teiError, failure: teiFailure{}, tag: tagTasks, summary: summary + ", in the form of Text Embeddings Inference",
			query: []parameter{{"model", "the model, when several take texts", false}},
			body:  body, limit: MaxJSONBody, answer: answer, fails: []int{400, 404, 408, 413, 415, 422, 424, 429, 503}}
	}
	open := func(r route) route {
		r.open = true
		return r
	}
	admin := func(r route) route {
		r.admin = true
		r.fails = append([]int{401, 403}, r.fails...)
		return r
	}
	table := []route{
		get(v2, s.serverMeta, tagProtocol, "Name, version and extensions of the server", serverMetadata{}),
		open(get(v2+"/health/live", s.live, tagProtocol, "Whether the process answers", health{})),
		open(get(v2+"/health/ready", s.ready, tagProtocol, "Whether requests would be served now", health{}, 503)),
		get(v2+"/models", s.modelList, tagProtocol, "Names of the models", modelNames{}),
		get(v2+"/models/stats", s.modelStats, tagProtocol, "Statistics of all models", statsAnswer{}),
		infer(model), infer(version),
	}
	for _, at := range []string{model, version} {
		table = append(table,
			get(at, s.modelMeta, tagProtocol, "Inputs and outputs of a model", modelMetadata{}, 400, 404, 503),
			get(at+"/ready", s.modelReady, tagProtocol, "Whether the model would answer now", health{}, 400, 404, 503),
			get(at+"/config", s.modelConfig, tagProtocol, "Configuration of a model, in Triton's form", modelConfig{}, 400, 404, 503),
			get(at+"/stats", s.modelStats, tagProtocol, "Statistics of a model", statsAnswer{}, 400, 404))
	}
	for _, at := range []string{v2, model} {
		table = append(table,
			get(at+"/trace/setting", s.getTrace, tagProtocol, "What is traced", traceSettings{}, 404, 501),
			admin(route{method: "POST", path: at + "/trace/setting", handler: s.setTrace, tag: tagProtocol, summary: "Trace requests into a file that ui.perfetto.dev opens",
				body: traceRequest{}, optional: true, limit: MaxJSONBody, answer: traceSettings{}, fails: []int{400, 404, 501}}))
	}
	table = append(table,
		get(v2+"/logging", s.getLogging, tagProtocol, "What is logged", logSettings{}, 501),
		admin(route{method: "POST", path: v2 + "/logging", handler: s.setLogging, tag: tagProtocol, summary: "Change what is logged",
			body: logSettings{}, optional: true, limit: MaxJSONBody, answer: logSettings{}, fails: []int{400, 501}}),
		admin(get(v2+"/trace/files", s.traceList, tagOperate, "The trace files", traceFiles{}, 501)),
		admin(get(v2+"/trace/files/:file", s.traceFile, tagOperate, "A trace file, whole also while it is written", anyObject{}, 400, 404, 501)))
	table = append(table,
		route{method: "POST", path: v2 + "/repository/index", handler: s.repositoryIndex, tag: tagProtocol, summary: "Every model version with its state",
			body: indexRequest{}, optional: true, limit: MaxJSONBody, answer: []ModelInfo{}, fails: []int{400}},
		admin(route{method: "POST", path: v2 + "/repository/models/:model/load", handler: s.repositoryLoad, tag: tagProtocol, summary: "Load a model, its new default version, or the version whose files the request brings",
			body: loadRequestDoc{}, optional: true, limit: MaxLoadBody, answer: loadAnswer{}, fails: []int{400, 404, 408, 413, 415, 422, 501, 503, 507}}),
		admin(route{method: "POST", path: v2 + "/repository/models/:model/unload", handler: s.repositoryUnload, tag: tagProtocol, summary: "Stop serving a model; requests in flight finish",
			body: anyObject{}, optional: true, limit: MaxJSONBody, answer: struct{}{}, fails: []int{400, 404}}),

		route{method: "POST", path: "/v1/classify", handler: s.classify, tag: tagTasks, summary: "Labels and scores of texts or images: JSON, a form with files (multipart/form-data), or one image as the body",
			query: []parameter{{"model", "the model, when the body is an image or a form", false}, {"version", "its version; without it the default", false}},
			body:  classifyRequest{}, limit: s.cfg.MaxInferBody, answer: classifyAnswer{}, fails: []int{400, 404, 413, 415, 422, 503}},

		route{method: "POST", path: "/v1/embeddings", handler: s.embeddings, words: s.openAIError, failure: openAIFailure{}, tag: tagTasks, summary: "Embeddings of texts, in OpenAI's form",
			body: embeddingsRequest{}, limit: MaxJSONBody, answer: embeddingsAnswer{}, fails: []int{400, 404, 413, 415, 422, 503}},
		tei("/embed", s.teiEmbed, "Embeddings of texts", teiEmbedRequest{}, [][]float32{}),
		tei("/predict", s.teiPredict, "Labels and scores of texts or pairs of texts", teiPredictRequest{}, []teiScore{}),
		tei("/rerank", s.teiRerank, "Texts by how well they answer a query", teiRerankRequest{}, []teiRank{}),
		tei("/tokenize", s.teiTokenize, "Token ids of texts", teiTokenizeRequest{}, [][]teiToken{}),
		route{method: "GET", path: "/info", handler: s.teiInfo, words: s.teiError, failure: teiFailure{}, tag: tagTasks, summary: "The model that takes texts", answer: teiInfo{}, fails: []int{404, 422, 429, 503}},

		admin(route{method: "POST", path: "/quantize", handler: s.quantize, tag: tagJobs, summary: "Start a quantization job",
			query: []parameter{{"Idempotency-Key", "the same key returns the same job", true}},
			body:  jobs.Spec{}, limit: MaxJSONBody, status: http.StatusAccepted, answer: jobAccepted{}, fails: []int{400, 404, 409, 413, 503}}),
		admin(get("/quantize", s.jobIndex, tagJobs, "All jobs, newest first", jobList{})),
		admin(get("/quantize/:id", s.job, tagJobs, "State and progress of a job", jobs.Status{}, 400, 404)),
		admin(route{method: "DELETE", path: "/quantize/:id", handler: s.jobCancel, tag: tagJobs, summary: "Cancel a job",
			status: http.StatusAccepted, answer: jobs.Status{}, fails: []int{400, 404, 409}}),
		admin(route{method: "GET", path: "/quantize/:id/events", handler: s.jobEvents, tag: tagJobs, summary: "Changes of a job as server-sent events (event: status) until it ends",
			media: eventStream, answer: jobs.Status{}, fails: []int{400, 404}}),
		admin(route{method: "GET", path: "/quantize/:id/report", handler: s.jobReport, tag: tagJobs, summary: "Report of a finished job: JSON, or HTML by Accept",
			answer: anyObject{}, fails: []int{400, 404, 409, 501}}),

		admin(get("/models", s.modelIndex, tagUploads, "Every model version with its state", modelIndex{})),
		admin(route{method: "PUT", path: "/models/:model", handler: s.putModel, tag: tagUploads,
			summary: "Upload a model as a new version: an ONNX file, or a zip with model.onnx, its external data, tokenizer.json, labels.txt",
			body:    []byte{}, bodyType: "application/octet-stream", limit: s.cfg.MaxUpload, status: http.StatusCreated, answer: modelUploaded{}, fails: []int{400, 408, 413, 415, 422, 507}}),
		admin(get("/models/:model", s.modelVersions, tagUploads, "Versions of a model", modelVersions{}, 400, 404)),
		admin(route{method: "DELETE", path: "/models/:model", handler: s.deleteModel, tag: tagUploads, summary: "Delete a model with all versions", status: http.StatusNoContent, fails: []int{400, 404, 409}}),
		admin(route{method: "DELETE", path: "/models/:model/versions/:version", handler: s.deleteModel, tag: tagUploads, summary: "Delete one version", status: http.StatusNoContent, fails: []int{400, 404, 409}}),
		admin(route{method: "POST", path: "/models/:model/promote", handler: s.promote, tag: tagUploads, summary: "Make a version the default",
			body: promoteRequest{}, limit: MaxJSONBody, answer: modelUploaded{}, fails: []int{400, 404, 422}}),
		admin(route{method: "POST", path: "/models/:model/rollback", handler: s.rollback, tag: tagUploads, summary: "Return to the default version before",
			body: struct{}{}, optional: true, limit: MaxJSONBody, answer: modelUploaded{}, fails: []int{400, 404, 409}}),
		admin(route{method: "PUT", path: "/models/:model/capture", handler: s.captureStart, tag: tagUploads, summary: "Begin to keep a sample of the model's inputs, encrypted",
			body: capture.Settings{}, optional: true, limit: MaxJSONBody, answer: capture.Status{}, fails: []int{400, 404, 409, 501, 503}}),
		admin(get("/models/:model/capture", s.captureStatus, tagUploads, "What is captured of a model", capture.Status{}, 400, 404, 501)),
		admin(route{method: "POST", path: "/models/:model/capture/stop", handler: s.captureStop, tag: tagUploads, summary: "End a capture; its samples stay",
			body: struct{}{}, optional: true, limit: MaxJSONBody, answer: capture.Status{}, fails: []int{400, 404, 501}}),
		admin(route{method: "GET", path: "/models/:model/capture/samples.npz", handler: s.captureExport, tag: tagUploads, summary: "The captured inputs in clear, one array for each input",
			media: "application/octet-stream", answer: []byte{}, fails: []int{400, 404, 409, 501}}),
		admin(route{method: "DELETE", path: "/models/:model/capture", handler: s.captureDelete, tag: tagUploads, summary: "End a capture and delete its samples", status: http.StatusNoContent, fails: []int{400, 404, 501}}),
		admin(get("/datasets", s.datasetIndex, tagUploads, "All datasets", datasetList{})),
		admin(route{method: "PUT", path: "/datasets/:dataset", handler: s.putDataset, tag: tagUploads, summary: "Upload a dataset: npz, npy, jsonl or a zip of images",
			body: []byte{}, bodyType: "application/octet-stream", limit: s.cfg.MaxUpload, status: http.StatusCreated, answer: DatasetInfo{}, fails: []int{400, 408, 413, 415, 507}}),
		admin(get("/datasets/:dataset", s.getDataset, tagUploads, "One dataset", DatasetInfo{}, 400, 404)),
		admin(route{method: "DELETE", path: "/datasets/:dataset", handler: s.deleteDataset, tag: tagUploads, summary: "Delete a dataset", status: http.StatusNoContent, fails: []int{400, 404, 409}}),

		open(get("/health", s.ready, tagTasks, "Whether requests would be served now, where clients of Text Embeddings Inference ask", health{}, 503)),

		get("/telemetry", s.telemetrySnapshot, tagOperate, "Latency against the targets; power, temperature and memory", telemetry.Snapshot{}),
		route{method: "GET", path: "/metrics", handler: s.prometheus, tag: tagOperate, summary: "Prometheus metrics", media: "text/plain", answer: ""},
		open(get(openAPIRoute, s.openapiDoc, tagOperate, "This document", anyObject{})),
		open(route{method: "GET", path: "/", handler: s.consolePage, tag: tagOperate, summary: "The console", media: "text/html", answer: ""}),
		open(route{method: "GET", path: "/console/:file", handler: s.consolePage, tag: tagOperate, summary: "Files of the console", media: "text/css", answer: "", fails: []int{404}}),
	)
	return append(table, profiles()...)
}
