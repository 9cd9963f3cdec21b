# JupyterHub for a class on one server: everybody logs in with an account of that server, works in a
# notebook server of their own, and fetches and submits assignments through nbgrader's exchange.
#
#     make student                                    in a clone that only instructors can read
#     unzip dist/compresslab-student.zip -d /srv      what students get, without any solution
#     cd /srv/compresslab-course
#     python3 -m venv /srv/hub && . /srv/hub/bin/activate
#     pip install -c constraints.txt -e '.[lab,grade]' jupyterhub
#     npm install -g configurable-http-proxy
#     COMPRESSLAB_CACHE=/srv/models python -m compresslab.assets
#     install -d -m 777 /srv/nbgrader/exchange
#     install -D -t /etc/jupyter CLONE/solutions/hub/nbgrader_config.py    and edit the two paths
#     jupyterhub -f CLONE/solutions/hub/jupyterhub_config.py
#
# It listens on this machine only: put a web server with a certificate (nginx, Caddy) in front.
c = get_config()  # noqa: F821

c.JupyterHub.bind_url = "http://127.0.0.1:8000"
c.JupyterHub.authenticator_class = "pam"
c.Authenticator.allow_all = True  # everybody who has an account; or allowed_users = {...}

# The exchange knows students by the owner of their files: each runs under an account of their own.
c.JupyterHub.spawner_class = "jupyterhub.spawner.LocalProcessSpawner"
c.Spawner.default_url = "/lab"
c.Spawner.environment = {"COMPRESSLAB_CACHE": "/srv/models"}  # one copy of the models for all
# A student takes 1 to 3 GB while a model is loaded. Servers that nobody has used for an hour are
# stopped, and give it back; to enforce a limit, use systemdspawner or containers.
c.Spawner.args = ["--ServerApp.shutdown_no_activity_timeout=3600"]
