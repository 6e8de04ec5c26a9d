//go:build linux || darwin || freebsd

// Package signals receives the program's signals from its own initialisation on.
//
// It imports nothing but a few packages of the standard library, so the Go runtime
// initialises it before all other packages of the program. A signal that arrives
// while those are initialised, or while the configuration is read, is remembered.
package signals

import (
	"context"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"
)

// Each channel has room for one signal, as a second one of its kind asks for nothing
// more. Stop has room for two: the second one ends the program at once.
var (
	reload = receive(1, syscall.SIGHUP)
	status = receive(1, syscall.SIGUSR1)
	stop   = receive(2, syscall.SIGINT, syscall.SIGTERM)

	serving atomic.Bool
)

func receive(room int, signals ...os.Signal) chan os.Signal {
	c := make(chan os.Signal, room)
	signal.Notify(c, signals...)
	return c
}

// Reload returns where SIGHUP arrives.
func Reload() <-chan os.Signal { return reload }

// Status returns where SIGUSR1 arrives.
func Status() <-chan os.Signal { return status }

// Context returns a context that ends with the first SIGINT or SIGTERM. Unless Serving
// has been called by then, late is called when the program still runs limit later, or
// with a second signal. Context must be called once.
func Context(limit time.Duration, late func()) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-stop
		cancel()
		select {
		case <-stop:
		case <-time.After(limit):
		}
		if !serving.Load() {
			late()
		}
	}()
	return ctx
}

// Serving is for a command that runs until it is stopped, and that ends by itself in
// time from now on.
func Serving() { serving.Store(true) }

// KeepWriting is for the same commands as Serving: a write to a pipe without a reader, to
// a terminal from the background or to a file above the process's limit is an error from
// now on, and does not end the process.
func KeepWriting() {
	signal.Ignore(syscall.SIGPIPE, syscall.SIGTTOU, syscall.SIGXFSZ)
}

// Default is for all other commands: SIGHUP and SIGUSR1 end the process, as usual.
func Default() {
	signal.Reset(syscall.SIGHUP, syscall.SIGUSR1)
	for _, c := range []chan os.Signal{reload, status} {
		select {
		case s := <-c:
			_ = syscall.Kill(os.Getpid(), s.(syscall.Signal))
		default:
		}
	}
}
