{{/* Name of the application: the chart's, unless overridden. */}}
{{- define "galvatron.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Name of every object: the release's and the application's, said once where one contains the other. */}}
{{- define "galvatron.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains (include "galvatron.name" .) .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else if hasPrefix (printf "%s-" .Release.Name) (include "galvatron.name" .) -}}
{{- include "galvatron.name" . -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "galvatron.name" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Only these two: a Deployment's selector cannot change in an upgrade. */}}
{{- define "galvatron.selectorLabels" -}}
app.kubernetes.io/name: {{ include "galvatron.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "galvatron.labels" -}}
{{ include "galvatron.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: galvatron
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "galvatron.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "galvatron.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "galvatron.image" -}}
{{- $repository := .Values.image.repository -}}
{{- with .Values.image.registry }}{{ $repository = printf "%s/%s" . $repository }}{{ end -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* Beside the operator's image, unless it is given whole. */}}
{{- define "galvatron.runtimeImage" -}}
{{- if .Values.runtime.image -}}
{{- .Values.runtime.image -}}
{{- else if .Values.image.registry -}}
{{- printf "%s/galvatron-runtime:%s" .Values.image.registry .Chart.AppVersion -}}
{{- else -}}
{{- printf "galvatron-runtime:%s" .Chart.AppVersion -}}
{{- end -}}
{{- end -}}

{{/* Stop with a remedy when the Prometheus Operator's API is asked for and missing. Argument: (list context kind value). */}}
{{- define "galvatron.requireMonitoring" -}}
{{- $context := index . 0 -}}{{- $kind := index . 1 -}}{{- $value := index . 2 -}}
{{- if not ($context.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" $kind)) -}}
{{- fail (printf "%s is true, but this cluster has no %s (monitoring.coreos.com/v1): install the Prometheus Operator first, or set %s=false" $value $kind $value) -}}
{{- end -}}
{{- end -}}

{{/* Where the on-call person reads on, if the values say where docs/alerts.md is. Argument: (list context anchor). */}}
{{- define "galvatron.runbook" -}}
{{- with (index . 0).Values.metrics.prometheusRule.runbookURL -}}
runbook_url: {{ printf "%s#%s" . (index $ 1) | quote }}
{{- end -}}
{{- end -}}
