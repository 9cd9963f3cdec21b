# For /etc/jupyter: where instructors and students find the exchange. Edit the two paths.
c = get_config()  # noqa: F821

c.CourseDirectory.course_id = "compression"
c.Exchange.root = "/srv/nbgrader/exchange"
c.CourseDirectory.root = "/srv/nbgrader/compression"  # a clone of this repository, instructors only
c.CourseDirectory.source_directory = "solutions"
c.CourseDirectory.release_directory = "exercises"
c.CourseDirectory.submitted_directory = "grading/submitted"
