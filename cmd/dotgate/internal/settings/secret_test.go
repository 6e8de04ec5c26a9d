package settings

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"dotgate/configs"
)

// public are the options whose values are texts and no secrets, at their names. An
// option that is not among them must have a type of the package secret.
var public = strings.Fields(`
	gateway.nsid gateway.version_bind gateway.id_server gateway.hostname_bind gateway.forward_local gateway.ecs gateway.allow_private
	cache.file cache.redis.master cache.redis.ca_file cache.redis.prefix bootstrap balancer.policy health.probe_name health.probe_type
	admin.token_file admin.cert_file admin.key_file admin.client_ca_file peers.nodes peers.key_file control.socket
	query_log.output query_log.format query_log.clients query_log.key_file
	tracing.clients tracing.key_file tracing.service tracing.headers_file log.format
	upstreams[].name upstreams[].protocol upstreams[].host upstreams[].bootstrap upstreams[].server_name upstreams[].ca_file
	upstreams[].transports upstreams[].doh_path upstreams[].doh_name
	upstreams[].pins upstreams[].source upstreams[].cert_hashes upstreams[].cert_file upstreams[].key_file upstreams[].probe_name upstreams[].probe_type`)

// TestEachTextIsPublicOrSecret: a new option that holds a text can't be forgotten.
func TestEachTextIsPublicOrSecret(t *testing.T) {
	t.Parallel()
	settings := configs.SettingsOf("", new(Config))
	settings = append(settings, configs.SettingsOf("upstreams[].", new(Upstream))...)
	secrets := 0
	for _, s := range settings {
		element := s.Field.Type()
		if s.IsList() {
			element = element.Elem()
		}
		switch {
		case s.IsSecret():
			secrets++
			if slices.Contains(public, s.Key) {
				t.Errorf("%s is secret and public", s.Key)
			}
		case element.Kind() == reflect.String && !slices.Contains(public, s.Key):
			t.Errorf("%s: is it a secret? Then its type is secret.Text; else it is listed here", s.Key)
		}
	}
	if secrets != 7 {
		t.Errorf("there are %d options with secrets", secrets)
	}
}

// TestSecretsAreNotShown: neither in what check prints, nor with any verb of fmt, nor in
// errors about them.
func TestSecretsAreNotShown(t *testing.T) {
	t.Parallel()
	const hex = "0123456789abcdef0123456789abcdef"
	environ := []string{
		"DOTGATE_GATEWAY_COOKIE_SECRET=" + hex, "DOTGATE_ADMIN_TOKEN=" + hex, "DOTGATE_PEERS_KEY=" + hex + hex,
		"DOTGATE_TRACING_HEADERS=Authorization: Bearer " + hex, "DOTGATE_TRACING_ENDPOINT=https://otel.example/?key=" + hex,
		"DOTGATE_CACHE_REDIS_URL=redis://me:" + hex + "@redis.example",
	}
	c := mustParse(t, "", environ...)
	texts := []string{effective(t, c)}
	for _, s := range configs.SettingsOf("", c) {
		if s.IsSecret() {
			texts = append(texts, fmt.Sprintf("%v %+v %#v %s", s.Field, s.Field, s.Field, s.Text()))
		}
	}
	texts = append(texts, strings.Join(c.Differences(mustParse(t, "")), " "))
	for _, document := range []string{
		"gateway: {cookie_secret: " + hex + "}", "gateway: {cookie_secret: [" + hex + "00]}", "peers: {key: " + hex + "}", "peers: {key: [" + hex + "]}",
		"admin: {token: [" + hex + "]}", "tracing: {headers: 'Authorization: " + hex + "'}", "tracing: {headers: ['" + hex + "']}",
		"tracing: {endpoint: 'ftp://" + hex + "'}", "tracing: {endpoint: 'http://me:" + hex + "@otel.example'}",
		"cache: {redis: {url: 'redis://me:" + hex + "@a'}}", "cache: {redis: {url: ['http://me:" + hex + "@a']}}",
	} {
		texts = append(texts, problemsOf(t, document))
	}
	texts = append(texts, problemsOf(t, "", "DOTGATE_ADMIN_TOKEN="+hex+"\xff"))
	for _, text := range texts {
		if strings.Contains(text, hex) {
			t.Errorf("a secret is shown: %s", text)
		}
	}
}
