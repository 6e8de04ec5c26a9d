package server

import (
	"context"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"dotgate/cmd/dotgate/internal/logging"
	"dotgate/cmd/dotgate/internal/settings"
)

// A logOutput is the log of the process on standard error.
type logOutput struct {
	*slog.Logger
	stderr  *logging.Writer
	handler *logHandler
}

// lastLines bounds the time in which the reader of standard error takes the last lines.
const lastLines = 250 * time.Millisecond

// close writes the lines that are left.
func (o *logOutput) close() { o.stderr.Close(lastLines) }

// openLog returns the log on standard error. The default loggers write there, too.
func openLog(l settings.Log) *logOutput {
	var log *slog.Logger
	ready := make(chan struct{})
	stderr := logging.New(os.Stderr, func(lines uint64, err error) {
		<-ready
		reason := "its reader was too slow"
		if err != nil {
			reason = err.Error()
		}
		log.Warn("lines of the log were dropped: standard error did not take them", "lines", lines, "reason", reason)
	})
	h := newLogHandler(l, stderr)
	log = slog.New(h)
	close(ready)
	slog.SetDefault(log)
	return &logOutput{log, stderr, h}
}

// A logHandler is a slog.Handler whose level and format can be changed while loggers use
// it.
type logHandler struct {
	text, json slog.Handler
	level      *slog.LevelVar
	asJSON     *atomic.Bool
}

func newLogHandler(l settings.Log, out io.Writer) *logHandler {
	h := &logHandler{level: new(slog.LevelVar), asJSON: new(atomic.Bool)}
	options := &slog.HandlerOptions{Level: h.level}
	h.text, h.json = slog.NewTextHandler(out, options), slog.NewJSONHandler(out, options)
	h.configure(l)
	return h
}

// configure sets the level and the format.
func (h *logHandler) configure(l settings.Log) {
	h.level.Set(l.Level)
	h.asJSON.Store(l.Format == "json")
}

func (h *logHandler) handler() slog.Handler {
	if h.asJSON.Load() {
		return h.json
	}
	return h.text
}

func (h *logHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.handler().Enabled(ctx, level)
}

func (h *logHandler) Handle(ctx context.Context, r slog.Record) error {
	return h.handler().Handle(ctx, r)
}

func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logHandler{h.text.WithAttrs(attrs), h.json.WithAttrs(attrs), h.level, h.asJSON}
}

func (h *logHandler) WithGroup(name string) slog.Handler {
	return &logHandler{h.text.WithGroup(name), h.json.WithGroup(name), h.level, h.asJSON}
}
