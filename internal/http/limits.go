package http

import "time"

// Limits on what a request may contain. Every one is checked before anything
// is allocated for what it bounds.
const (
	// MaxInferBody is the default limit of an inference body after decoding.
	MaxInferBody = 64 << 20
	// MaxUpload is the default limit of a model or dataset body.
	MaxUpload = 16 << 30
	// MaxJSONBody bounds the bodies of the small JSON routes.
	MaxJSONBody = 1 << 20
	// MaxBodiesInFlight bounds the memory of all inference bodies together.
	MaxBodiesInFlight = 1 << 30
	// MaxJSONDepth bounds the nesting of any JSON value.
	MaxJSONDepth = 64
	// MaxElements bounds an array outside of tensors, so that a long body of short
	// elements does not become a hundred times its bytes before they are counted.
	MaxElements = 1 << 16
	// MaxTensors bounds the inputs, and the outputs, of one request.
	MaxTensors = 256
	// MaxTensorName bounds a tensor's name, in bytes.
	MaxTensorName = 512
	// MaxRequestID bounds the id of a request, in bytes; MaxLogID the one that its
	// header X-Request-Id names it by in the log.
	MaxRequestID = 1024
	MaxLogID     = 128
	// MaxTokens bounds the elements of a request's integer matrices (token ids):
	// a language model's memory grows by kilobytes for each of them.
	MaxTokens = 16384
	// MaxTexts and MaxTextBytes bound one classification request.
	MaxTexts     = 256
	MaxTextBytes = 1 << 20
	// MaxTimeoutMicros is the longest timeout a request may ask for: one hour.
	MaxTimeoutMicros = int64(time.Hour / time.Microsecond)
	// MaxModelsCounted bounds the model versions with statistics of their own.
	MaxModelsCounted = 1024
	// MaxBatchSizesCounted bounds the batch sizes told apart in statistics.
	MaxBatchSizesCounted = 64
	// MaxHeaderBytes bounds the header of a request.
	MaxHeaderBytes = 64 << 10

	// keptBuffer is the largest buffer that goes back into a pool: a burst of
	// large requests must not stay in memory.
	keptBuffer = 4 << 20
	// firstRead is the most that is allocated on the word of Content-Length.
	firstRead = 1 << 20
	// compressFrom is the smallest answer worth compressing.
	compressFrom = 256
)

// Defaults of Config.
const (
	DefaultListen        = "127.0.0.1:8080"
	DefaultTarget        = 50 * time.Millisecond
	DefaultHeaderTimeout = 10 * time.Second
	DefaultBodyTimeout   = 30 * time.Second
	DefaultInferTimeout  = 60 * time.Second
	DefaultIdleTimeout   = 120 * time.Second
	DefaultDrainTimeout  = 20 * time.Second
	DefaultHeartbeat     = 10 * time.Second
	DefaultMaxInFlight   = 256
	DefaultMaxConns      = 4096
)
