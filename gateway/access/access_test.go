package access

import (
	"testing"

	"dotgate/configs/secret"
)

func TestLimitsAndCookiesOutliveAChangeOfOtherOptions(t *testing.T) {
	old := Options{RateLimit: 10, RateBurst: 500}
	first, err := New(old, nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	f := func(o Options, refusals, limits, cookies bool) {
		t.Helper()
		next, err := New(o, first, old)
		if err != nil {
			t.Fatal(err)
		}
		if got := next.refusals == first.refusals; got != refusals {
			t.Errorf("%+v: keeps refusals: %v", o, got)
		}
		if got := next.limits == first.limits; got != limits {
			t.Errorf("%+v: keeps limits: %v", o, got)
		}
		if got := next.cookies.secrets[0] == first.cookies.secrets[0]; got != cookies {
			t.Errorf("%+v: keeps cookies: %v", o, got)
		}
	}
	f(Options{RateLimit: 10, RateBurst: 500, Allow: []Range{{OnLink: true}}}, true, true, true)
	f(Options{RateLimit: 11, RateBurst: 500}, true, false, true)
	f(Options{RateLimit: 10, RateBurst: 7}, true, false, true)
	f(Options{RateLimit: 10, RateBurst: 500, CookieSecret: []secret.Text{"00112233445566778899aabbccddeeff"}}, true, true, false)
}
