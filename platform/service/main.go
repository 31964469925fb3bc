package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/caarlos0/env/v11"

	"shop.example/platform/telemetry"
)

// gcPercent is GOGC if it is not set. What lives is small beside what each order leaves behind: the default collects
// so often that it takes a fifth of our CPU.
const gcPercent = 250

// TuneGC sets the garbage collector for a process that runs services, unless GOGC is set.
func TuneGC() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

// Main is what a program's main calls: run until SIGINT or SIGTERM ends its context. An error is one line on standard
// error, as LOG_FORMAT says, and exit code 1. A second signal ends the process at once.
func Main(name string, run func(context.Context) error) {
	cfg, err := env.ParseAs[telemetry.Config]()
	if err != nil {
		cfg = telemetry.Config{LogFormat: telemetry.Text} // run says what is wrong with it
	}
	cfg.Service = name
	log := slog.New(telemetry.NewHandler(cfg))
	telemetry.LogLibraries(log)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	TuneGC()
	err = withProfiles(ctx, log, run)
	if err == nil || (ctx.Err() != nil && errors.Is(err, context.Canceled)) {
		return
	}
	if cfg.LogFormat == telemetry.JSON {
		log.Error("the program has failed", "error", err)
	} else {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
	}
	os.Exit(1)
}

func withProfiles(ctx context.Context, log *slog.Logger, run func(context.Context) error) error {
	stop, err := StartProfiles(log)
	if err != nil {
		return err
	}
	defer stop()
	return run(ctx)
}
