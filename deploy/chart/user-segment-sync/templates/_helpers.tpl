{{/* Names, labels, and the one pod that Deployment, Jobs and test have in common. */}}

{{- define "sync.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "sync.fullname" -}}
{{- $name := include "sync.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- .Values.fullnameOverride | default $full | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "sync.labels" -}}
app.kubernetes.io/name: {{ include "sync.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "sync.selector" -}}
app.kubernetes.io/name: {{ include "sync.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sync.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion -}}
{{ .Values.image.repository }}:{{ $tag }}{{ with .Values.image.digest }}@{{ . }}{{ end }}
{{- end -}}

{{- define "sync.port" -}}
{{- index .Values.settings "HTTP_PORT" | default 8080 | int -}}
{{- end -}}

{{/* Longer than the worker's own limit, so that it is never killed in the middle of a batch. */}}
{{- define "sync.grace" -}}
{{- add (index .Values.settings "DRAIN_TIMEOUT_S" | default 20 | toString | float64 | ceil | int) 15 -}}
{{- end -}}

{{- define "sync.secret" -}}
{{- .Values.secrets.existingSecret | default (include "sync.fullname" .) -}}
{{- end -}}

{{/* Settings and secrets. `.secret` is the Secret to take; Jobs that run before anything is installed have one of their own. */}}
{{- define "sync.env" -}}
{{- range $name, $value := .root.Values.settings }}
- name: SYNC_WORKER_{{ $name }}
  {{- /* A whole number is a float to Helm, and a large one would become 1e+06. */}}
  value: {{ ternary (int64 $value | toString) (toString $value) (and (kindIs "float64" $value) (eq (toString $value | float64 | floor) (toString $value | float64))) | quote }}
{{- end }}
{{- range .root.Values.secrets.create | keys | concat .root.Values.secrets.keys | uniq | sortAlpha }}
{{- if $.root.Values.secrets.asFiles }}
- name: SYNC_WORKER_{{ . }}_FILE
  value: /run/secrets/sync-worker/{{ . }}
{{- else }}
- name: SYNC_WORKER_{{ . }}
  valueFrom:
    secretKeyRef:
      name: {{ $.secret }}
      key: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "sync.mounts" -}}
{{- if .Values.secrets.asFiles }}
- name: secrets
  mountPath: /run/secrets/sync-worker
  readOnly: true
{{- end }}
{{- range .Values.mounts }}
- name: mount-{{ .name }}
  mountPath: /etc/sync-worker/{{ .name }}
  readOnly: true
{{- end }}
{{- end -}}

{{- define "sync.volumes" -}}
{{- if .root.Values.secrets.asFiles }}
- name: secrets
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
{{- end }}
{{- range .root.Values.mounts }}
- name: mount-{{ .name }}
  {{- if .secret }}
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
  {{- else }}
  configMap:
    name: {{ .configMap }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* A pod at the level `restricted` of Kubernetes' pod security standards, without a token for its API. */}}
{{- define "sync.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{- define "sync.container" -}}
image: {{ include "sync.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  privileged: false
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  capabilities:
    drop: [ALL]
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{/* What no schema can say, as it needs two values. */}}
{{- define "sync.check" -}}
{{- $most := ternary .Values.replicas .Values.autoscaling.maxReplicas (eq .Values.autoscaling.kind "none") | int -}}
{{- if gt $most (int .Values.partitions) -}}
{{- fail (printf "%d workers for %d partitions: the rest would have nothing to do; lower replicas or autoscaling.maxReplicas, or raise partitions once the topics have more" $most (int .Values.partitions)) -}}
{{- end -}}
{{- if and (ne .Values.autoscaling.kind "none") (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and .Values.secrets.existingSecret .Values.secrets.create -}}
{{- fail "secrets.existingSecret and secrets.create: set one of the two" -}}
{{- end -}}
{{- if not (or .Values.secrets.existingSecret (index .Values.secrets.create "DATABASE_URL")) -}}
{{- fail "the worker's DATABASE_URL is missing: secrets.existingSecret, or secrets.create.DATABASE_URL" -}}
{{- end -}}
{{- if and .Values.migration.enabled (not (or .Values.migration.existingSecret .Values.migration.databaseUrl)) -}}
{{- fail "the owner's database URL is missing: migration.existingSecret, or migration.databaseUrl; or migration.enabled=false" -}}
{{- end -}}
{{- if and (eq .Values.autoscaling.kind "keda") (not .Values.autoscaling.keda.serverAddress) -}}
{{- fail "autoscaling.keda.serverAddress, the address of Prometheus, is missing" -}}
{{- end -}}
{{- end -}}
