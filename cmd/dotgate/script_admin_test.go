package main

import (
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// scriptGet asks for a page.
func scriptGet(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 3 {
		ts.Fatalf("usage: get PATH [CODE] [TOKEN]")
	}
	code, token := "200", ""
	if len(args) > 1 {
		code = args[1]
	}
	if len(args) > 2 {
		token = args[2]
	}
	got, text := get(ts, args[0], token)
	ts.Stdout().Write(text)
	if got != code {
		ts.Fatalf("%s: %s, not %s: %s", args[0], got, code, text)
	}
}

// scriptBecomes asks for a page until its code is another.
func scriptBecomes(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: becomes PATH CODE [REGEXP]")
	}
	wanted := regexp.MustCompile("(?m)" + strings.Join(args[2:], ""))
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for deadline := time.Now().Add(storyPatience); ; <-again.C {
		code, text := get(ts, args[0], "")
		switch {
		case code == args[1] && wanted.Match(text):
			ts.Stdout().Write(text)
			return
		case time.Now().After(deadline):
			ts.Fatalf("%s stays %s: %s", args[0], code, text)
		}
	}
}

// keptAlive asks on one connection if it can: lameduck has to end those, too.
var keptAlive http.Transport

func get(ts *testscript.TestScript, path, token string) (code string, text []byte) {
	request, err := http.NewRequest(http.MethodGet, "http://"+ts.Getenv("ADMIN")+path, http.NoBody)
	ts.Check(err)
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := keptAlive.RoundTrip(request)
	ts.Check(err)
	defer response.Body.Close()
	text, err = io.ReadAll(response.Body)
	ts.Check(err)
	return strconv.Itoa(response.StatusCode), text
}
